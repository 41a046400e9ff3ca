package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"time"

	geth "github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/ethereum/go-ethereum/ethclient/gethclient"
	"github.com/ethereum/go-ethereum/rpc"
	"github.com/gorilla/websocket"
)

// As many calls at once as the other drivers make.
const atOnce = 200

// client is one rpc.Client over WebSocket, as ethclient and gethclient see it, and one over HTTP.
type client struct {
	ws, http *rpc.Client
	eth      *ethclient.Client
	subs     map[int]geth.Subscription
	mutex    sync.Mutex
}

type command struct {
	ID      int
	Command string
	Args    []json.RawMessage
}

// ethereum takes a command per line, {"id": .., "command": .., "args": [..]}, and answers {"id": .., "value": ..} or
// {"id": .., "error": ..}; events are {"subscription": id of the command, "event": ..}.
func ethereum(ws, http string) error {
	ctx := context.Background()
	overWS, err := rpc.DialContext(ctx, ws)
	if err != nil {
		return err
	}
	overHTTP, err := rpc.DialContext(ctx, http)
	if err != nil {
		return err
	}
	c := &client{ws: overWS, http: overHTTP, eth: ethclient.NewClient(overWS), subs: map[int]geth.Subscription{}}
	return lines(func(line []byte) error {
		var asked command
		if err := json.Unmarshal(line, &asked); err != nil {
			return err
		}
		go c.run(asked)
		return nil
	})
}

func (c *client) run(asked command) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	value, err := c.answer(ctx, asked)
	if err != nil {
		say(object{"id": asked.ID, "error": plain(err)})
		return
	}
	say(object{"id": asked.ID, "value": value})
}

func (c *client) answer(ctx context.Context, asked command) (any, error) {
	switch asked.Command {
	case "subscribe":
		return nil, c.subscribe(ctx, asked)
	case "unsubscribe":
		var id int
		if err := arguments(asked, &id); err != nil {
			return nil, err
		}
		c.mutex.Lock()
		sub := c.subs[id]
		c.mutex.Unlock()
		// Waits for the answer to eth_unsubscribe, and keeps it for itself.
		sub.Unsubscribe()
		return nil, nil
	case "call", "call_http":
		var call call
		if err := arguments(asked, &call.method, &call.params); err != nil {
			return nil, err
		}
		if asked.Command == "call_http" {
			return call.by(ctx, c.http)
		}
		return call.by(ctx, c.ws)
	case "many", "batch":
		var calls []call
		if err := arguments(asked, &calls); err != nil {
			return nil, err
		}
		if asked.Command == "batch" {
			return batch(ctx, c.ws, calls)
		}
		return c.many(ctx, calls), nil
	case "reads":
		var facts facts
		if err := arguments(asked, &facts); err != nil {
			return nil, err
		}
		return c.reads(ctx, facts)
	case "send":
		var request request
		var key hexutil.Bytes
		if err := arguments(asked, &request, &key); err != nil {
			return nil, err
		}
		return c.send(ctx, request, key)
	}
	return nil, fmt.Errorf("no such command: %s", asked.Command)
}

func arguments(asked command, into ...any) error {
	for at, value := range into {
		if err := json.Unmarshal(asked.Args[at], value); err != nil {
			return err
		}
	}
	return nil
}

// plain is an error with all that the library tells of it.
func plain(err error) object {
	told := object{"name": fmt.Sprintf("%T", err), "message": err.Error()}
	var coded rpc.Error
	if errors.As(err, &coded) {
		told["code"] = coded.ErrorCode()
	}
	var more rpc.DataError
	if errors.As(err, &more) {
		told["data"] = more.ErrorData()
	}
	return told
}

func outcome(value any, err error) object {
	if err != nil {
		return object{"error": plain(err)}
	}
	return object{"value": value}
}

// --- subscriptions ---

type filter struct {
	Address json.RawMessage
	Topics  []json.RawMessage
}

// either takes one of something or a list of it; nothing for null.
func either[T any](raw json.RawMessage) ([]T, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var one T
	if json.Unmarshal(raw, &one) == nil {
		return []T{one}, nil
	}
	var list []T
	err := json.Unmarshal(raw, &list)
	return list, err
}

func (f filter) query() (query geth.FilterQuery, err error) {
	if query.Addresses, err = either[common.Address](f.Address); err != nil {
		return query, err
	}
	for _, raw := range f.Topics {
		topics, err := either[common.Hash](raw)
		if err != nil {
			return query, err
		}
		query.Topics = append(query.Topics, topics)
	}
	return query, nil
}

func (c *client) subscribe(ctx context.Context, asked command) error {
	var kind string
	if err := arguments(asked, &kind); err != nil {
		return err
	}
	more := gethclient.New(c.ws)
	switch kind {
	case "heads":
		return follow(c, asked.ID, func(to chan<- *types.Header) (geth.Subscription, error) {
			return c.eth.SubscribeNewHead(ctx, to)
			// The hash is not read but computed: every field of the header has come as it was.
		}, func(head *types.Header) any { return head.Hash() })
	case "logs":
		var wanted filter
		if err := json.Unmarshal(asked.Args[1], &wanted); err != nil {
			return err
		}
		query, err := wanted.query()
		if err != nil {
			return err
		}
		return follow(c, asked.ID, func(to chan<- types.Log) (geth.Subscription, error) {
			return c.eth.SubscribeFilterLogs(ctx, query, to)
		}, func(log types.Log) any { return log })
	case "pending":
		return follow(c, asked.ID, func(to chan<- common.Hash) (geth.Subscription, error) {
			return more.SubscribePendingTransactions(ctx, to)
		}, func(hash common.Hash) any { return hash })
	case "pendingFull":
		return follow(c, asked.ID, func(to chan<- *types.Transaction) (geth.Subscription, error) {
			return more.SubscribeFullPendingTransactions(ctx, to)
		}, func(tx *types.Transaction) any { return object{"hash": tx.Hash()} })
	}
	return fmt.Errorf("no such subscription: %s", kind)
}

// follow tells each event, and why the subscription ended unless it was given up.
func follow[T any](c *client, id int, begin func(chan<- T) (geth.Subscription, error), tell func(T) any) error {
	events := make(chan T, 64)
	sub, err := begin(events)
	if err != nil {
		return err
	}
	c.mutex.Lock()
	c.subs[id] = sub
	c.mutex.Unlock()
	go func() {
		for {
			select {
			case event := <-events:
				say(object{"subscription": id, "event": tell(event)})
			case err := <-sub.Err():
				var closed *websocket.CloseError
				if errors.As(err, &closed) {
					say(object{"closed": closed.Code})
				}
				return
			}
		}
	}()
	return nil
}

// --- calls ---

type call struct {
	method string
	params []any
}

func (c *call) UnmarshalJSON(text []byte) error {
	return json.Unmarshal(text, &[]any{&c.method, &c.params})
}

func (c call) by(ctx context.Context, client *rpc.Client) (json.RawMessage, error) {
	var result json.RawMessage
	err := client.CallContext(ctx, &result, c.method, c.params...)
	return result, err
}

func (c *client) many(ctx context.Context, calls []call) []object {
	answers := make([]object, len(calls))
	room := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for at, call := range calls {
		room <- struct{}{}
		all.Go(func() {
			result, err := call.by(ctx, c.ws)
			answers[at] = outcome(result, err)
			<-room
		})
	}
	all.Wait()
	return answers
}

func batch(ctx context.Context, client *rpc.Client, calls []call) ([]object, error) {
	elems := make([]rpc.BatchElem, len(calls))
	for at, call := range calls {
		elems[at] = rpc.BatchElem{Method: call.method, Args: call.params, Result: new(json.RawMessage)}
	}
	if err := client.BatchCallContext(ctx, elems); err != nil {
		return nil, err
	}
	answers := make([]object, len(calls))
	for at, elem := range elems {
		answers[at] = outcome(elem.Result, elem.Error)
	}
	return answers, nil
}

type facts struct {
	Hash, BlockHash   common.Hash
	Block             int64
	Contract, Account common.Address
	// The calls of the contract: one that is answered, and two that are refused.
	Double, Refuse, RefusePlainly hexutil.Bytes
}

// reads are ethclient's own methods, which decode what comes, and check it.
func (c *client) reads(ctx context.Context, facts facts) (object, error) {
	told := object{}
	var broken error
	tell := func(name string, read func() (any, error)) {
		value, err := read()
		told[name] = outcome(value, err)
		broken = errors.Join(broken, ctx.Err())
	}
	number := big.NewInt(facts.Block)
	tell("ChainID", func() (any, error) { return c.eth.ChainID(ctx) })
	tell("BlockByHash", func() (any, error) {
		block, err := c.eth.BlockByHash(ctx, facts.BlockHash)
		if err != nil {
			return nil, err
		}
		return []any{block.Hash(), block.Transactions(), block.Withdrawals()}, nil
	})
	tell("HeaderByNumber", func() (any, error) { return c.eth.HeaderByNumber(ctx, number) })
	tell("TransactionByHash", func() (any, error) {
		tx, pending, err := c.eth.TransactionByHash(ctx, facts.Hash)
		return []any{tx, pending}, err
	})
	tell("TransactionReceipt", func() (any, error) { return c.eth.TransactionReceipt(ctx, facts.Hash) })
	tell("BlockReceipts", func() (any, error) {
		return c.eth.BlockReceipts(ctx, rpc.BlockNumberOrHashWithHash(facts.BlockHash, false))
	})
	tell("BalanceAt", func() (any, error) { return c.eth.BalanceAt(ctx, facts.Account, number) })
	tell("FeeHistory", func() (any, error) { return c.eth.FeeHistory(ctx, 3, number, []float64{25}) })
	tell("FilterLogs", func() (any, error) {
		return c.eth.FilterLogs(ctx, geth.FilterQuery{BlockHash: &facts.BlockHash})
	})
	for name, data := range map[string]hexutil.Bytes{
		"CallContract": facts.Double, "revert": facts.Refuse, "revertPlainly": facts.RefusePlainly,
	} {
		tell(name, func() (any, error) {
			return c.eth.CallContract(ctx, geth.CallMsg{To: &facts.Contract, Data: data}, nil)
		})
	}
	return told, broken
}

type request struct {
	To   common.Address
	Data hexutil.Bytes
	Gas  uint64
}

func (c *client) send(ctx context.Context, request request, secret []byte) (any, error) {
	key, err := crypto.ToECDSA(secret)
	if err != nil {
		return nil, err
	}
	chain, err := c.eth.ChainID(ctx)
	if err != nil {
		return nil, err
	}
	nonce, err := c.eth.PendingNonceAt(ctx, crypto.PubkeyToAddress(key.PublicKey))
	if err != nil {
		return nil, err
	}
	price, err := c.eth.SuggestGasPrice(ctx)
	if err != nil {
		return nil, err
	}
	legacy := &types.LegacyTx{Nonce: nonce, To: &request.To, Data: request.Data, Gas: request.Gas, GasPrice: price}
	tx, err := types.SignNewTx(key, types.LatestSignerForChainID(chain), legacy)
	if err != nil {
		return nil, err
	}
	if err := c.eth.SendTransaction(ctx, tx); err != nil {
		return nil, err
	}
	for {
		receipt, err := c.eth.TransactionReceipt(ctx, tx.Hash())
		if err == nil {
			logs := []uint{}
			for _, log := range receipt.Logs {
				logs = append(logs, log.Index)
			}
			return object{"hash": tx.Hash(), "logs": logs}, nil
		}
		if !errors.Is(err, geth.NotFound) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}
