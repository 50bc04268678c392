// grpc-echo-server is a plain grpc-go server for the tests: see echo/echo.proto for what it can be asked to do.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"pillion.invalid/tests/clients/echo"
)

const maxMessage = 64 << 20

type server struct {
	echo.UnimplementedEchoServer
	id                             string
	started, ok, failed, cancelled atomic.Uint64
	conns, open                    atomic.Int64
}

// reply fills in what every reply carries.
func (s *server) reply(ctx context.Context, req *echo.EchoRequest, sequence uint64) *echo.EchoReply {
	r := &echo.EchoReply{ServerId: s.id, Text: req.GetText(), Payload: req.GetPayload(), Sequence: sequence, DeadlineMs: -1}
	if n := req.GetReplySize(); n > 0 {
		r.Payload = bytes.Repeat([]byte{byte(sequence)}, int(n))
	}
	if at, ok := ctx.Deadline(); ok {
		r.DeadlineMs = time.Until(at).Milliseconds()
	}
	if p, ok := peer.FromContext(ctx); ok {
		r.Peer = p.Addr.String()
	}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md[":authority"] {
		r.Authority = v
	}
	keys := make([]string, 0, len(md))
	for k := range md {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		for _, v := range md[k] {
			r.Metadata = append(r.Metadata, &echo.Entry{Key: k, Value: []byte(v)})
		}
	}
	return r
}

func pairs(entries []*echo.Entry) metadata.MD {
	md := metadata.MD{}
	for _, e := range entries {
		md.Append(e.GetKey(), string(e.GetValue()))
	}
	return md
}

func sleep(ctx context.Context, ms uint32) error {
	if ms == 0 {
		return nil
	}
	timer := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

func asked(req *echo.EchoRequest) error {
	if req.GetStatusCode() == 0 {
		return nil
	}
	st := status.New(codes.Code(req.GetStatusCode()), req.GetStatusMessage())
	if d := req.GetStatusDetail(); d != "" {
		with, err := st.WithDetails(&echo.EchoReply{Text: d})
		if err != nil {
			return err
		}
		st = with
	}
	return st.Err()
}

func (s *server) Unary(ctx context.Context, req *echo.EchoRequest) (*echo.EchoReply, error) {
	if len(req.Header) > 0 {
		if err := grpc.SetHeader(ctx, pairs(req.Header)); err != nil {
			return nil, err
		}
	}
	if len(req.Trailer) > 0 {
		if err := grpc.SetTrailer(ctx, pairs(req.Trailer)); err != nil {
			return nil, err
		}
	}
	// Made before the sleep: the deadline is the one seen when the call began.
	r := s.reply(ctx, req, 0)
	if req.HeaderFirst {
		if err := grpc.SendHeader(ctx, nil); err != nil {
			return nil, err
		}
	}
	if err := sleep(ctx, req.SleepMs); err != nil {
		return nil, err
	}
	if err := asked(req); err != nil {
		return nil, err
	}
	return r, nil
}

func (s *server) ServerStream(req *echo.EchoRequest, stream grpc.ServerStreamingServer[echo.EchoReply]) error {
	if len(req.Header) > 0 {
		if err := stream.SetHeader(pairs(req.Header)); err != nil {
			return err
		}
	}
	stream.SetTrailer(pairs(req.Trailer))
	if req.HeaderFirst {
		if err := stream.SendHeader(nil); err != nil {
			return err
		}
	}
	if err := sleep(stream.Context(), req.SleepMs); err != nil {
		return err
	}
	for i := uint64(0); i < uint64(req.Count); i++ {
		if i > 0 {
			if err := sleep(stream.Context(), req.IntervalMs); err != nil {
				return err
			}
		}
		if err := stream.Send(s.reply(stream.Context(), req, i)); err != nil {
			return err
		}
	}
	return asked(req)
}

func (s *server) ClientStream(stream grpc.ClientStreamingServer[echo.EchoRequest, echo.EchoReply]) error {
	var texts []string
	last := &echo.EchoRequest{}
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		texts = append(texts, req.GetText())
		last = req
		if err := asked(req); err != nil {
			return err
		}
	}
	r := s.reply(stream.Context(), last, uint64(len(texts)))
	r.Text = strings.Join(texts, ",")
	return stream.SendAndClose(r)
}

func (s *server) Bidi(stream grpc.BidiStreamingServer[echo.EchoRequest, echo.EchoReply]) error {
	for i := uint64(0); ; i++ {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := sleep(stream.Context(), req.SleepMs); err != nil {
			return err
		}
		if err := asked(req); err != nil {
			return err
		}
		if err := stream.Send(s.reply(stream.Context(), req, i)); err != nil {
			return err
		}
	}
}

func (s *server) Stats(context.Context, *echo.StatsRequest) (*echo.StatsReply, error) {
	return &echo.StatsReply{
		ServerId: s.id, Started: s.started.Load(), Ok: s.ok.Load(), Failed: s.failed.Load(), Cancelled: s.cancelled.Load(),
		Connections: uint64(s.conns.Load()), ConnectionsOpen: uint64(s.open.Load()),
	}, nil
}

// count keeps the figures of Stats. Only calls of the Echo service other than Stats itself are counted.
func (s *server) count(ctx context.Context, method string, call func() error) error {
	if !strings.HasPrefix(method, "/pillion.test.Echo/") || strings.HasSuffix(method, "/Stats") {
		return call()
	}
	s.started.Add(1)
	err := call()
	switch {
	case ctx.Err() != nil:
		s.cancelled.Add(1)
	case err != nil:
		s.failed.Add(1)
	default:
		s.ok.Add(1)
	}
	return err
}

func (s *server) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (s *server) HandleRPC(context.Context, stats.RPCStats)                         {}
func (s *server) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (s *server) HandleConn(_ context.Context, c stats.ConnStats) {
	switch c.(type) {
	case *stats.ConnBegin:
		s.conns.Add(1)
		s.open.Add(1)
	case *stats.ConnEnd:
		s.open.Add(-1)
	}
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on; port 0 takes a free one")
	id := flag.String("id", "", "name that every reply carries (default: the address)")
	maxStreams := flag.Uint("max-streams", 0, "SETTINGS_MAX_CONCURRENT_STREAMS to announce (0: grpc-go's default, no limit)")
	maxAge := flag.Duration("max-age", 0, "say GOAWAY on each connection after this long (0: never)")
	flag.Parse()
	log.SetFlags(0)

	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	s := &server{id: *id}
	if s.id == "" {
		s.id = ln.Addr().String()
	}
	options := []grpc.ServerOption{
		grpc.StatsHandler(s),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (out any, err error) {
			err = s.count(ctx, info.FullMethod, func() (err error) { out, err = h(ctx, req); return })
			return
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			return s.count(ss.Context(), info.FullMethod, func() error { return h(srv, ss) })
		}),
	}
	if *maxStreams > 0 {
		options = append(options, grpc.MaxConcurrentStreams(uint32(*maxStreams)))
	}
	if *maxAge > 0 {
		options = append(options, grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: *maxAge}))
	}
	g := grpc.NewServer(options...)
	echo.RegisterEchoServer(g, s)
	grpc_health_v1.RegisterHealthServer(g, health.NewServer())
	reflection.Register(g)
	fmt.Printf("listening %s\n", ln.Addr())

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	go func() {
		<-stop
		// Calls that never end must not keep the test waiting.
		force := time.AfterFunc(5*time.Second, g.Stop)
		g.GracefulStop()
		force.Stop()
	}()
	if err := g.Serve(ln); err != nil {
		log.Fatal(err)
	}
	fmt.Println("stopped")
}
