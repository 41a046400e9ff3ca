// The Go clients of the interop tests: a driver each, for one connection, spoken to by lines of JSON.
//
//	interop gorilla WS [deflate]
//	interop ethclient WS HTTP
//	interop session WS MILLISECONDS
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

func main() {
	if len(os.Args) < 4 {
		fail("interop gorilla WS plain|deflate, interop ethclient WS HTTP, or interop session WS MILLISECONDS")
	}
	var err error
	switch os.Args[1] {
	case "gorilla":
		err = gorilla(os.Args[2], os.Args[3] == "deflate")
	case "ethclient":
		err = ethereum(os.Args[2], os.Args[3])
	case "session":
		pause, _ := strconv.Atoi(os.Args[3])
		err = session(os.Args[2], time.Duration(pause)*time.Millisecond)
	default:
		fail("no such client: " + os.Args[1])
	}
	if err != nil {
		fail(err.Error())
	}
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(1)
}

type object = map[string]any

var stdout sync.Mutex

// say tells what happened, in one line.
func say(what object) {
	line, err := json.Marshal(what)
	if err != nil {
		fail(err.Error())
	}
	stdout.Lock()
	defer stdout.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

// lines passes each line of stdin on until there are no more.
func lines(take func([]byte) error) error {
	scanner := bufio.NewScanner(os.Stdin)
	scanner.Buffer(nil, 16<<20)
	for scanner.Scan() {
		if err := take(scanner.Bytes()); err != nil {
			return err
		}
	}
	return scanner.Err()
}
