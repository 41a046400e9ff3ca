package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/event"
	"github.com/ethereum/go-ethereum/rpc"
)

// seen is a head or a log, as far as the test looks at it.
type seen struct {
	Hash      common.Hash
	BlockHash common.Hash
	LogIndex  hexutil.Uint64
	Removed   bool
}

// docs/sessions.md
func withSession(url string) string {
	return fmt.Sprintf("%s/?session=%d-%016x", url, time.Now().Unix(), rand.Uint64())
}

func subscribe(client *rpc.Client, to any, params ...any) event.Subscription {
	return event.Resubscribe(time.Second, func(ctx context.Context) (event.Subscription, error) {
		return client.EthSubscribe(ctx, to, params...)
	})
}

// end

// session subscribes to heads and all logs with event.Resubscribe, on one client with a session, and prints what the
// application gets, an event a line. `slow` is the pause after each event.
func session(url string, slow time.Duration) error {
	client, err := rpc.DialContext(context.Background(), url)
	if err != nil {
		return err
	}
	heads, logs := make(chan seen, 1<<16), make(chan seen, 1<<16)
	subscribe(client, heads, "newHeads")
	subscribe(client, logs, "logs", object{})
	for {
		select {
		case head := <-heads:
			fmt.Printf("head %s 0x0\n", head.Hash)
		case log := <-logs:
			kind := "log"
			if log.Removed {
				kind = "undo"
			}
			fmt.Printf("%s %s %s\n", kind, log.BlockHash, log.LogIndex)
		}
		time.Sleep(slow)
	}
}
