// xds-control-plane serves clusters and endpoints over ADS with go-control-plane's own caches and servers, so that the
// tests talk to what many companies run. It is told what to serve by a file and over a small HTTP API on another port, in
// protobuf's JSON:
//
//	PUT /clusters         {"resources": [Cluster…]}; DELETE /clusters?name=NAME
//	PUT /endpoints        {"resources": [ClusterLoadAssignment…]}; DELETE /endpoints?name=NAME
//	GET /requests         every discovery request so far, as JSON: what was asked, accepted and refused
//	GET /connections      how many connections have been accepted, and how many of them are open
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	// What clusters of the tests carry in an Any.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

// store is one of the caches, filled by resource.
type store interface {
	set(typeURL string, resources map[string]types.Resource) error
	remove(typeURL, name string) error
}

// linear keeps each resource's own version.
type linear map[string]*cache.LinearCache

func (l linear) set(typeURL string, resources map[string]types.Resource) error {
	return l[typeURL].UpdateResources(resources, nil)
}

func (l linear) remove(typeURL, name string) error { return l[typeURL].DeleteResource(name) }

// snapshot makes a consistent whole of all of them at each change. Every node gets the same.
type snapshot struct {
	cache     cache.SnapshotCache
	resources map[string]map[string]types.Resource
	version   int64
}

type everyNode struct{}

func (everyNode) ID(*corev3.Node) string { return "" }

func (s *snapshot) set(typeURL string, resources map[string]types.Resource) error {
	for name, r := range resources {
		s.resources[typeURL][name] = r
	}
	return s.publish()
}

func (s *snapshot) remove(typeURL, name string) error {
	delete(s.resources[typeURL], name)
	return s.publish()
}

func (s *snapshot) publish() error {
	s.version++
	all := map[string][]types.Resource{}
	for typeURL, resources := range s.resources {
		for _, r := range resources {
			all[typeURL] = append(all[typeURL], r)
		}
	}
	made, err := cache.NewSnapshot(strconv.FormatInt(s.version, 10), all)
	if err != nil {
		return err
	}
	return s.cache.SetSnapshot(context.Background(), "", made)
}

// request is one line of the log: a DiscoveryRequest or a DeltaDiscoveryRequest.
type request struct {
	Delta       bool              `json:"delta"`
	Stream      int64             `json:"stream"`
	Type        string            `json:"type"`
	Node        json.RawMessage   `json:"node,omitempty"`
	Names       []string          `json:"names,omitempty"`
	Unsubscribe []string          `json:"unsubscribe,omitempty"`
	Versions    map[string]string `json:"versions,omitempty"`
	Version     string            `json:"version,omitempty"`
	Nonce       string            `json:"nonce,omitempty"`
	Error       string            `json:"error,omitempty"`
}

type requestLog struct {
	sync.Mutex
	lines []request
}

func (l *requestLog) add(r request, node *corev3.Node) {
	if node != nil {
		r.Node, _ = protojson.Marshal(node)
	}
	l.Lock()
	defer l.Unlock()
	l.lines = append(l.lines, r)
}

func (l *requestLog) callbacks() server.Callbacks {
	return server.CallbackFuncs{
		StreamRequestFunc: func(stream int64, r *discoveryv3.DiscoveryRequest) error {
			l.add(request{
				Stream: stream, Type: r.TypeUrl, Names: r.ResourceNames, Version: r.VersionInfo, Nonce: r.ResponseNonce,
				Error: r.GetErrorDetail().GetMessage(),
			}, r.Node)
			return nil
		},
		StreamDeltaRequestFunc: func(stream int64, r *discoveryv3.DeltaDiscoveryRequest) error {
			l.add(request{
				Delta: true, Stream: stream, Type: r.TypeUrl, Names: r.ResourceNamesSubscribe,
				Unsubscribe: r.ResourceNamesUnsubscribe, Versions: r.InitialResourceVersions, Nonce: r.ResponseNonce,
				Error: r.GetErrorDetail().GetMessage(),
			}, r.Node)
			return nil
		},
	}
}

// counted counts a listener's connections.
type counted struct {
	net.Listener
	accepted, open atomic.Int64
}

func (l *counted) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.accepted.Add(1)
	l.open.Add(1)
	return &countedConn{Conn: conn, open: &l.open}, nil
}

type countedConn struct {
	net.Conn
	open   *atomic.Int64
	closed sync.Once
}

func (c *countedConn) Close() error {
	c.closed.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// stateOfTheWorld is an ADS that knows no deltas, as older control planes are.
type stateOfTheWorld struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	server.Server
}

func (s stateOfTheWorld) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.Server.StreamAggregatedResources(stream)
}

func (s stateOfTheWorld) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.UnimplementedAggregatedDiscoveryServiceServer.DeltaAggregatedResources(stream)
}

func decode(typeURL string, texts []json.RawMessage) (map[string]types.Resource, error) {
	found := map[string]types.Resource{}
	for _, text := range texts {
		var message types.Resource
		if typeURL == resource.ClusterType {
			message = &clusterv3.Cluster{}
		} else {
			message = &endpointv3.ClusterLoadAssignment{}
		}
		if err := protojson.Unmarshal(text, message); err != nil {
			return nil, err
		}
		found[cache.GetResourceName(message)] = message
	}
	return found, nil
}

// load serves what is in a file.
func load(resources store, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var body struct{ Clusters, Endpoints []json.RawMessage }
	if err := json.Unmarshal(text, &body); err != nil {
		return err
	}
	for typeURL, texts := range map[string][]json.RawMessage{
		resource.ClusterType: body.Clusters, resource.EndpointType: body.Endpoints,
	} {
		found, err := decode(typeURL, texts)
		if err == nil {
			err = resources.set(typeURL, found)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func api(resources store, requests *requestLog, listener *counted) http.Handler {
	var mu sync.Mutex
	mux := http.NewServeMux()
	for path, typeURL := range map[string]string{"/clusters": resource.ClusterType, "/endpoints": resource.EndpointType} {
		mux.HandleFunc("PUT "+path, func(w http.ResponseWriter, r *http.Request) {
			var body struct{ Resources []json.RawMessage }
			err := json.NewDecoder(r.Body).Decode(&body)
			var found map[string]types.Resource
			if err == nil {
				found, err = decode(typeURL, body.Resources)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				err = resources.set(typeURL, found)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
			}
		})
		mux.HandleFunc("DELETE "+path, func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			if err := resources.remove(typeURL, r.URL.Query().Get("name")); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, _ *http.Request) {
		requests.Lock()
		lines := slices.Clone(requests.lines)
		requests.Unlock()
		json.NewEncoder(w).Encode(lines)
	})
	mux.HandleFunc("GET /connections", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]int64{"accepted": listener.accepted.Load(), "open": listener.open.Load()})
	})
	return mux
}

func serverTLS(cert, key, clientCA string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}}
	if clientCA != "" {
		pem, err := os.ReadFile(clientCA)
		if err != nil {
			return nil, err
		}
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", clientCA)
		}
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return config, nil
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "where ADS is served")
	control := flag.String("control", "127.0.0.1:0", "where the HTTP API is served")
	kind := flag.String("cache", "linear", "go-control-plane's cache: linear, snapshot or snapshot-ads (which holds back incomplete answers)")
	sotw := flag.Bool("sotw-only", false, "delta is Unimplemented")
	cert := flag.String("cert", "", "TLS certificate")
	key := flag.String("key", "", "its key")
	clientCA := flag.String("client-ca", "", "ask for client certificates of this authority")
	initial := flag.String("initial", "", "a file of what is served from the start: {\"clusters\": […], \"endpoints\": […]}")
	token := flag.String("token", "", "refuse streams without `authorization: Bearer TOKEN`")
	minPing := flag.Duration("min-ping", 5*time.Minute, "close connections that are pinged more often (5m is grpc-go's default)")
	flag.Parse()

	var served cache.Cache
	var resources store
	switch *kind {
	case "linear":
		// The prefix tells the versions of this process from those of one before it.
		prefix := cache.WithVersionPrefix(fmt.Sprintf("%d.", time.Now().UnixNano()))
		caches := linear{
			resource.ClusterType:  cache.NewLinearCache(resource.ClusterType, prefix),
			resource.EndpointType: cache.NewLinearCache(resource.EndpointType, prefix),
		}
		resources = caches
		served = &cache.MuxCache{
			Classify:      func(r *cache.Request) string { return r.GetTypeUrl() },
			ClassifyDelta: func(r *cache.DeltaRequest) string { return r.GetTypeUrl() },
			Caches: map[string]cache.Cache{
				resource.ClusterType: caches[resource.ClusterType], resource.EndpointType: caches[resource.EndpointType],
			},
		}
	case "snapshot", "snapshot-ads":
		whole := cache.NewSnapshotCache(*kind == "snapshot-ads", everyNode{}, nil)
		made := &snapshot{
			cache: whole, version: time.Now().UnixNano(),
			resources: map[string]map[string]types.Resource{resource.ClusterType: {}, resource.EndpointType: {}},
		}
		if err := made.publish(); err != nil {
			log.Fatal(err)
		}
		resources, served = made, whole
	default:
		log.Fatalf("no cache is called %q", *kind)
	}

	if *initial != "" {
		if err := load(resources, *initial); err != nil {
			log.Fatal(err)
		}
	}

	options := []grpc.ServerOption{
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: *minPing}),
	}
	if *cert != "" {
		config, err := serverTLS(*cert, *key, *clientCA)
		if err != nil {
			log.Fatal(err)
		}
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	if *token != "" {
		options = append(options, grpc.StreamInterceptor(func(s any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			found, _ := metadata.FromIncomingContext(stream.Context())
			if !slices.Equal(found.Get("authorization"), []string{"Bearer " + *token}) {
				return status.Error(codes.Unauthenticated, "no valid bearer token")
			}
			return handle(s, stream)
		}))
	}
	requests := &requestLog{}
	var ads discoveryv3.AggregatedDiscoveryServiceServer = server.NewServer(context.Background(), served, requests.callbacks())
	if *sotw {
		ads = stateOfTheWorld{Server: ads.(server.Server)}
	}
	grpcServer := grpc.NewServer(options...)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(grpcServer, ads)

	socket, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	controlSocket, err := net.Listen("tcp", *control)
	if err != nil {
		log.Fatal(err)
	}
	listener := &counted{Listener: socket}
	go func() { log.Fatal(http.Serve(controlSocket, api(resources, requests, listener))) }()
	fmt.Printf("listening %s %s\n", socket.Addr(), controlSocket.Addr())
	log.Fatal(grpcServer.Serve(listener))
}
