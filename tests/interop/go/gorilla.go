package main

import (
	"encoding/json"
	"errors"

	"github.com/gorilla/websocket"
)

// gorilla passes text: on stdin a JSON string per message to send, on stdout {"open": true}, {"text": ..} or
// {"binary": ..} for each that comes, and {"closed": code}.
func gorilla(url string, deflate bool) error {
	dialer := *websocket.DefaultDialer
	dialer.EnableCompression = deflate
	socket, _, err := dialer.Dial(url, nil)
	if err != nil {
		return err
	}
	say(object{"open": true})
	go receive(socket)
	return lines(func(line []byte) error {
		var text string
		if err := json.Unmarshal(line, &text); err != nil {
			return err
		}
		return socket.WriteMessage(websocket.TextMessage, []byte(text))
	})
}

func receive(socket *websocket.Conn) {
	for {
		kind, message, err := socket.ReadMessage()
		var closed *websocket.CloseError
		if errors.As(err, &closed) {
			say(object{"closed": closed.Code})
			return
		}
		if err != nil {
			fail(err.Error())
		}
		name := map[int]string{websocket.TextMessage: "text", websocket.BinaryMessage: "binary"}[kind]
		say(object{name: string(message)})
	}
}
