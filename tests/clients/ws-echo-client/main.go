// ws-echo-client sends messages of growing size to ws-echo-server, checks that each comes back as sent, prints one
// JSON object and exits 1 if anything differed.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/coder/websocket"
)

type result struct {
	Ok        int      `json:"ok"`
	Failed    int      `json:"failed"`
	Bytes     int      `json:"bytes"`
	Server    string   `json:"server"`
	Status    int      `json:"status"`
	ElapsedMs int64    `json:"elapsed_ms"`
	Errors    []string `json:"errors"`
}

func (r *result) fail(err error) {
	r.Failed++
	r.Errors = append(r.Errors, err.Error())
}

// size of message i of n: from 1 byte to most bytes in even steps.
func size(i, n, most int) int {
	if n == 1 {
		return most
	}
	return 1 + (most-1)*i/(n-1)
}

func (r *result) run(ctx context.Context, url, host string, n, most int) {
	ws, response, err := websocket.Dial(ctx, url, &websocket.DialOptions{Host: host, Subprotocols: []string{"echo"}})
	if response != nil {
		r.Status = response.StatusCode
		r.Server = response.Header.Get("x-server-id")
	}
	if err != nil {
		r.fail(err)
		return
	}
	defer ws.CloseNow()
	ws.SetReadLimit(64 << 20)
	if ws.Subprotocol() != "echo" {
		r.fail(fmt.Errorf("subprotocol %q, expected echo", ws.Subprotocol()))
	}
	alphabet := []byte("abcdefghijklmnopqrstuvwxyz0123456789 ")
	for i := range n {
		length := size(i, n, most)
		message := bytes.Repeat(alphabet, length/len(alphabet)+1)[:length]
		// Text and binary in turn: they differ in one bit of the frame.
		kind := websocket.MessageText
		if i%2 == 1 {
			kind = websocket.MessageBinary
		}
		if err := ws.Write(ctx, kind, message); err != nil {
			r.fail(fmt.Errorf("message %d of %d bytes: %w", i, length, err))
			return
		}
		back, got, err := ws.Read(ctx)
		if err != nil {
			r.fail(fmt.Errorf("message %d of %d bytes: %w", i, length, err))
			return
		}
		if back != kind || !bytes.Equal(got, message) {
			r.fail(fmt.Errorf("message %d: sent %d bytes (%v), %d other bytes came back (%v)", i, length, kind, len(got), back))
			continue
		}
		r.Ok++
		r.Bytes += length
	}
	// A close frame that the server begins must arrive with its code and reason.
	if err := ws.Write(ctx, websocket.MessageText, []byte("close 4001 bye")); err != nil {
		r.fail(err)
		return
	}
	_, _, err = ws.Read(ctx)
	if closed := (websocket.CloseError{}); !errors.As(err, &closed) || closed.Code != 4001 || closed.Reason != "bye" {
		r.fail(fmt.Errorf("asked for close 4001 bye, got %v", err))
	}
}

func main() {
	url := flag.String("url", "", "ws://host:port/path")
	host := flag.String("host", "", "Host header (default: from the URL)")
	n := flag.Int("n", 20, "messages to send")
	most := flag.Int("max-size", 1<<20, "size of the last message")
	timeout := flag.Duration("timeout", 60*time.Second, "time for all of it")
	flag.Parse()

	r := &result{Errors: []string{}}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	began := time.Now()
	r.run(ctx, *url, *host, *n, *most)
	r.ElapsedMs = time.Since(began).Milliseconds()
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if r.Failed > 0 {
		os.Exit(1)
	}
}
