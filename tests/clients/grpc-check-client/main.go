// grpc-check-client calls grpc-echo-server over one plaintext connection, checks every answer against what
// was asked for, prints one JSON object and exits 1 if anything differed.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"pillion.invalid/tests/clients/echo"
)

const (
	maxMessage  = 64 << 20
	firstErrors = 5
	// Characters that grpc-message must percent-encode, and ones that look encoded already.
	oddMessage = "café ☕ 100% done \"%41\" 中文 ~\t-\x7f end"
)

// result is what is printed; run by many goroutines at once.
type result struct {
	Mode      string         `json:"mode"`
	Ok        int            `json:"ok"`
	Failed    int            `json:"failed"`
	PerServer map[string]int `json:"per_server"`
	Errors    []string       `json:"errors"`
	ElapsedMs int64          `json:"elapsed_ms"`
	Statuses  map[string]int `json:"statuses"`
	Detail    map[string]any `json:"detail,omitempty"`

	mu sync.Mutex
}

func (r *result) add(server string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if server != "" {
		r.PerServer[server]++
	}
	if err == nil {
		r.Ok++
		return
	}
	r.Failed++
	if st, ok := status.FromError(err); ok {
		r.Statuses[st.Code().String()]++
	}
	if len(r.Errors) < firstErrors {
		r.Errors = append(r.Errors, err.Error())
	}
}

func (r *result) note(key string, value any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Detail[key] = value
}

type checker struct {
	*result
	echo.EchoClient
	messages int
	size     int
	timeout  time.Duration
}

func (c *checker) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), c.timeout)
}

// request has a text and payload of its own, so that an answer to another call is noticed.
func (c *checker) request(call, message int) *echo.EchoRequest {
	text := fmt.Sprintf("call %d message %d", call, message)
	var payload []byte
	if c.size > 0 {
		payload = bytes.Repeat([]byte(text+"|"), c.size/(len(text)+1)+1)[:c.size]
	}
	return &echo.EchoRequest{Text: text, Payload: payload}
}

func same(req *echo.EchoRequest, reply *echo.EchoReply, sequence int) error {
	switch {
	case reply.GetText() != req.GetText():
		return fmt.Errorf("asked %q, answered %q", req.GetText(), reply.GetText())
	case !bytes.Equal(reply.GetPayload(), req.GetPayload()):
		return fmt.Errorf("%q: payload of %d bytes came back as %d other bytes", req.GetText(), len(req.GetPayload()), len(reply.GetPayload()))
	case reply.GetSequence() != uint64(sequence):
		return fmt.Errorf("%q: sequence %d, expected %d", req.GetText(), reply.GetSequence(), sequence)
	}
	return nil
}

func (c *checker) unary(call int) (string, error) {
	ctx, cancel := c.ctx()
	defer cancel()
	req := c.request(call, 0)
	reply, err := c.Unary(ctx, req)
	if err != nil {
		return "", err
	}
	return reply.ServerId, same(req, reply, 0)
}

func (c *checker) serverStream(call int) (string, error) {
	ctx, cancel := c.ctx()
	defer cancel()
	req := c.request(call, 0)
	req.Count = uint32(c.messages)
	stream, err := c.ServerStream(ctx, req)
	if err != nil {
		return "", err
	}
	server := ""
	for i := 0; ; i++ {
		reply, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if i != c.messages {
				return server, fmt.Errorf("stream ended after %d of %d messages", i, c.messages)
			}
			return server, nil
		}
		if err != nil {
			return server, err
		}
		server = reply.ServerId
		if err := same(req, reply, i); err != nil {
			return server, err
		}
	}
}

func (c *checker) clientStream(call int) (string, error) {
	ctx, cancel := c.ctx()
	defer cancel()
	stream, err := c.ClientStream(ctx)
	if err != nil {
		return "", err
	}
	var texts []string
	var last *echo.EchoRequest
	for i := range c.messages {
		last = c.request(call, i)
		texts = append(texts, last.Text)
		// io.EOF from Send says that the server ended the call: CloseAndRecv has its status.
		if err := stream.Send(last); err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
	}
	reply, err := stream.CloseAndRecv()
	if err != nil {
		return "", err
	}
	want := &echo.EchoRequest{Text: strings.Join(texts, ","), Payload: last.Payload}
	return reply.ServerId, same(want, reply, c.messages)
}

func (c *checker) bidi(call int) (string, error) {
	ctx, cancel := c.ctx()
	defer cancel()
	stream, err := c.Bidi(ctx)
	if err != nil {
		return "", err
	}
	server := ""
	for i := range c.messages {
		// Each message waits for the answer to the one before: fails if either side is held back until the other ends.
		req := c.request(call, i)
		if err := stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
			return server, err
		}
		reply, err := stream.Recv()
		if err != nil {
			return server, err
		}
		if server != "" && reply.ServerId != server {
			return server, fmt.Errorf("one stream answered by %s and %s", server, reply.ServerId)
		}
		server = reply.ServerId
		if err := same(req, reply, i); err != nil {
			return server, err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return server, err
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return server, fmt.Errorf("after the last message: %v, expected the end of the stream", err)
	}
	return server, nil
}

// many runs n calls, `concurrency` at a time.
func (c *checker) many(n, concurrency int, call func(int) (string, error)) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(n, concurrency) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range next {
				c.add(call(i))
			}
		}()
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// deadline checks that a short deadline ends a slow call in time, and that the server is told how much time it has.
func (c *checker) deadline(int) (string, error) {
	const short = 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), short)
	defer cancel()
	began := time.Now()
	_, err := c.Unary(ctx, &echo.EchoRequest{SleepMs: 5000})
	took := time.Since(began)
	c.note("short_code", status.Code(err).String())
	c.note("short_elapsed_ms", took.Milliseconds())
	if status.Code(err) != codes.DeadlineExceeded {
		return "", fmt.Errorf("200 ms deadline on a call of 5 s: %v", err)
	}
	if took < short-20*time.Millisecond || took > 4*time.Second {
		return "", fmt.Errorf("200 ms deadline ended the call after %v", took)
	}

	const long = 10 * time.Second
	ctx, cancel = context.WithTimeout(context.Background(), long)
	defer cancel()
	reply, err := c.Unary(ctx, &echo.EchoRequest{})
	if err != nil {
		return "", err
	}
	c.note("long_deadline_ms", long.Milliseconds())
	c.note("server_saw_ms", reply.DeadlineMs)
	if reply.DeadlineMs < 5000 || reply.DeadlineMs > long.Milliseconds() {
		return reply.ServerId, fmt.Errorf("client set a deadline of 10000 ms, server saw %d ms", reply.DeadlineMs)
	}

	// Whether a proxy sets a deadline of its own here is up to its timeouts: shown, not judged.
	if reply, err = c.Unary(context.Background(), &echo.EchoRequest{}); err != nil {
		return "", err
	}
	c.note("server_saw_ms_without_deadline", reply.DeadlineMs)
	return reply.ServerId, nil
}

func sameStatus(shape string, req *echo.EchoRequest, err error) error {
	st, ok := status.FromError(err)
	if !ok || err == nil {
		return fmt.Errorf("%s, code %d: got %v", shape, req.StatusCode, err)
	}
	if uint32(st.Code()) != req.StatusCode || st.Message() != req.StatusMessage {
		return fmt.Errorf("%s: sent %d %q, arrived as %d %q", shape, req.StatusCode, req.StatusMessage, st.Code(), st.Message())
	}
	details := st.Details()
	if len(details) != 1 {
		return fmt.Errorf("%s, code %d: %d details arrived, expected 1", shape, req.StatusCode, len(details))
	}
	if d, ok := details[0].(*echo.EchoReply); !ok || d.Text != req.StatusDetail {
		return fmt.Errorf("%s, code %d: detail arrived as %v", shape, req.StatusCode, details[0])
	}
	return nil
}

// failures asks for each status code in each shape in which a status can arrive.
func (c *checker) failures() {
	for code := uint32(1); code <= 16; code++ {
		req := &echo.EchoRequest{StatusCode: code, StatusMessage: fmt.Sprintf("%d: %s", code, oddMessage), StatusDetail: "detail " + oddMessage}
		ctx, cancel := c.ctx()

		_, err := c.Unary(ctx, req)
		c.add("", sameStatus("trailers only", req, err))

		req.HeaderFirst = true
		_, err = c.Unary(ctx, req)
		c.add("", sameStatus("headers, trailers", req, err))

		req.Count = 3
		stream, err := c.ServerStream(ctx, req)
		seen := 0
		for err == nil {
			if _, err = stream.Recv(); err == nil {
				seen++
			}
		}
		if seen != 3 {
			err = fmt.Errorf("%d messages came before the status, expected 3 (%v)", seen, err)
		}
		c.add("", sameStatus("after 3 messages", req, err))
		cancel()
	}
}

// metadata checks that keys and values of both kinds arrive as sent in requests, response headers and trailers.
func (c *checker) metadata(int) (string, error) {
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}
	sent := metadata.Pairs("x-test-plain", "one", "x-test-plain", "two, three", "x-test-odd", "a=b;c \"d\" ~!", "x-test-bin", string(binary), "x-test-bin", "")
	var asked []*echo.Entry
	for k, values := range sent {
		for _, v := range values {
			asked = append(asked, &echo.Entry{Key: k, Value: []byte(v)})
		}
	}
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(context.Background(), sent))
	defer cancel()
	var header, trailer metadata.MD
	reply, err := c.Unary(ctx, &echo.EchoRequest{Header: asked, Trailer: asked}, grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil {
		return "", err
	}
	seen := metadata.MD{}
	for _, e := range reply.Metadata {
		seen.Append(e.Key, string(e.Value))
	}
	c.note("server_saw", readable(seen))
	c.note("server_saw_authority", reply.Authority)
	c.note("response_header", readable(header))
	for _, where := range []struct {
		name string
		md   metadata.MD
	}{{"request", seen}, {"response header", header}, {"trailer", trailer}} {
		for k, want := range sent {
			// Values of one key may be joined by a comma on the way: that is the same list.
			if got := where.md[k]; strings.Join(got, ",") != strings.Join(want, ",") {
				return reply.ServerId, fmt.Errorf("%s %s: sent %q, arrived as %q", where.name, k, want, got)
			}
		}
	}
	return reply.ServerId, nil
}

// readable leaves out what JSON cannot show.
func readable(md metadata.MD) metadata.MD {
	shown := metadata.MD{}
	for k, v := range md {
		if !strings.HasSuffix(k, "-bin") {
			shown[k] = v
		}
	}
	return shown
}

// cancel gives up a call that would sleep a minute. Whether the server noticed is in its own count: -mode stats.
func (c *checker) cancel(int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	// By then it has reached the server, on a busy machine, too: what has not is not known there.
	stop := time.AfterFunc(2*time.Second, cancel)
	defer stop.Stop()
	defer cancel()
	_, err := c.Unary(ctx, &echo.EchoRequest{SleepMs: 60000})
	if status.Code(err) != codes.Canceled {
		return "", fmt.Errorf("cancelled call: %v", err)
	}
	return "", nil
}

func (c *checker) stats(int) (string, error) {
	ctx, cancel := c.ctx()
	defer cancel()
	reply, err := c.Stats(ctx, &echo.StatsRequest{})
	if err != nil {
		return "", err
	}
	for k, v := range map[string]uint64{
		"started": reply.Started, "ok": reply.Ok, "failed": reply.Failed, "cancelled": reply.Cancelled,
		"connections": reply.Connections, "connections_open": reply.ConnectionsOpen,
	} {
		c.note(k, v)
	}
	return reply.ServerId, nil
}

func main() {
	target := flag.String("target", "", "host:port to connect to")
	authority := flag.String("authority", "", ":authority of every call (default: the target)")
	mode := flag.String("mode", "unary", "unary, server-stream, client-stream, bidi, deadline, error, metadata, cancel or stats")
	n := flag.Int("n", 1, "calls to make (unary, the streams, cancel)")
	concurrency := flag.Int("concurrency", 16, "calls in flight at once")
	messages := flag.Int("messages", 10, "messages in each stream")
	size := flag.Int("size", 0, "bytes of payload in each message")
	timeout := flag.Duration("timeout", 30*time.Second, "deadline of each call")
	flag.Parse()

	r := &result{Mode: *mode, PerServer: map[string]int{}, Errors: []string{}, Statuses: map[string]int{}, Detail: map[string]any{}}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		// grpc-go would retry calls that never left: what the proxy refuses must be seen.
		grpc.WithDisableRetry(),
		grpc.WithNoProxy(),
	}
	if *authority != "" {
		options = append(options, grpc.WithAuthority(*authority))
	}
	conn, err := grpc.NewClient("passthrough:///"+*target, options...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(64)
	}
	defer conn.Close()
	c := &checker{result: r, EchoClient: echo.NewEchoClient(conn), messages: *messages, size: *size, timeout: *timeout}

	began := time.Now()
	switch *mode {
	case "unary":
		c.many(*n, *concurrency, c.unary)
	case "server-stream":
		c.many(*n, *concurrency, c.serverStream)
	case "client-stream":
		c.many(*n, *concurrency, c.clientStream)
	case "bidi":
		c.many(*n, *concurrency, c.bidi)
	case "cancel":
		c.many(*n, *concurrency, c.cancel)
	case "deadline":
		c.add(c.deadline(0))
	case "metadata":
		c.add(c.metadata(0))
	case "stats":
		c.add(c.stats(0))
	case "error":
		c.failures()
	default:
		fmt.Fprintf(os.Stderr, "unknown -mode %q\n", *mode)
		os.Exit(64)
	}
	r.ElapsedMs = time.Since(began).Milliseconds()
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	if err := out.Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if r.Failed > 0 {
		os.Exit(1)
	}
}
