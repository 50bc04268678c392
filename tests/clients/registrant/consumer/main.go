// consumer calls a service as a framework's own client finds it, so that the tests see whether what pillion registers is
// found. It prints "ready" and then obeys lines on standard input:
//
//	call PATH    GET PATH at one of the instances, prints "called ADDRESS STATUS" (of gRPC: a health check, "called SERVING")
//	             or "failed: WHY"
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	kratosetcd "github.com/go-kratos/kratos/contrib/registry/etcd/v2"
	kratoszookeeper "github.com/go-kratos/kratos/contrib/registry/zookeeper/v2"
	"github.com/go-kratos/kratos/v2/log"
	kratosregistry "github.com/go-kratos/kratos/v2/registry"
	kratosgrpc "github.com/go-kratos/kratos/v2/transport/grpc"
	kratoshttp "github.com/go-kratos/kratos/v2/transport/http"
	microetcd "github.com/go-micro/plugins/v4/registry/etcd"
	microzookeeper "github.com/go-micro/plugins/v4/registry/zookeeper"
	"github.com/go-zookeeper/zk"
	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/zrpc"
	"go-micro.dev/v4/registry"
	"go-micro.dev/v4/selector"
	clientv3 "go.etcd.io/etcd/client/v3"
	etcdresolver "go.etcd.io/etcd/client/v3/naming/resolver"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

const patience = 30 * time.Second

// caller makes one call, and says what came of it.
type caller func(ctx context.Context, path string) (string, error)

type options struct {
	service   string
	etcd      []string
	zookeeper []string
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "consumer:", err)
		os.Exit(1)
	}
}

func (o options) etcdClient() *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: o.etcd, DialTimeout: patience, Logger: zap.NewNop()})
	fail(err)
	return client
}

func (o options) kratos(where string) kratosregistry.Discovery {
	if where == "etcd" {
		return kratosetcd.New(o.etcdClient())
	}
	conn, _, err := zk.Connect(o.zookeeper, 10*time.Second, zk.WithLogInfo(false))
	fail(err)
	return kratoszookeeper.New(conn)
}

func open(framework, where string, o options) (caller, error) {
	switch framework + "/" + where {
	case "kratos/etcd", "kratos/zookeeper":
		client, err := kratoshttp.NewClient(context.Background(), kratoshttp.WithEndpoint("discovery:///"+o.service),
			kratoshttp.WithDiscovery(o.kratos(where)), kratoshttp.WithBlock(), kratoshttp.WithTimeout(patience))
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, path string) (string, error) {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
			if err != nil {
				return "", err
			}
			answer, err := client.Do(request)
			if err != nil {
				return "", err
			}
			return said(request.URL.Host, answer), nil
		}, nil
	case "kratos-grpc/etcd", "kratos-grpc/zookeeper":
		conn, err := kratosgrpc.DialInsecure(context.Background(), kratosgrpc.WithEndpoint("discovery:///"+o.service),
			kratosgrpc.WithDiscovery(o.kratos(where)), kratosgrpc.WithTimeout(patience))
		return checking(conn, err)
	case "go-micro/etcd":
		return selecting(o, microetcd.NewRegistry(registry.Addrs(o.etcd...))), nil
	case "go-micro/zookeeper":
		return selecting(o, microzookeeper.NewRegistry(registry.Addrs(o.zookeeper...))), nil
	case "go-zero/etcd":
		client, err := zrpc.NewClient(zrpc.RpcClientConf{
			Etcd: discov.EtcdConf{Hosts: o.etcd, Key: o.service}, Timeout: patience.Milliseconds(), NonBlock: true,
		})
		if err != nil {
			return nil, err
		}
		return checking(client.Conn(), nil)
	case "grpc/etcd":
		builder, err := etcdresolver.NewBuilder(o.etcdClient())
		if err != nil {
			return nil, err
		}
		conn, err := grpc.NewClient("etcd:///"+o.service, grpc.WithResolvers(builder),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
		return checking(conn, err)
	}
	return nil, fmt.Errorf("no client for -framework %s with %s", framework, where)
}

// checking calls what every gRPC server has.
func checking(conn grpc.ClientConnInterface, err error) (caller, error) {
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, _ string) (string, error) {
		answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			return "", err
		}
		return answer.Status.String(), nil
	}, nil
}

// selecting takes one of go-micro's nodes and calls it.
func selecting(o options, r registry.Registry) caller {
	choice := selector.NewSelector(selector.Registry(r))
	return func(ctx context.Context, path string) (string, error) {
		next, err := choice.Select(o.service)
		if err != nil {
			return "", err
		}
		node, err := next()
		if err != nil {
			return "", err
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+node.Address+path, nil)
		if err != nil {
			return "", err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return "", err
		}
		return said(node.Address, answer), nil
	}
}

func said(address string, answer *http.Response) string {
	_, _ = io.Copy(io.Discard, answer.Body)
	_ = answer.Body.Close()
	return fmt.Sprintf("%s %d", address, answer.StatusCode)
}

func main() {
	var o options
	framework := flag.String("framework", "", "kratos, kratos-grpc, go-micro, go-zero or grpc")
	flag.StringVar(&o.service, "service", "", "service name (go-zero: the key, grpc: the target)")
	etcd := flag.String("etcd", "", "etcd endpoints host:port, joined by commas")
	zookeeper := flag.String("zookeeper", "", "ZooKeeper servers host:port, joined by commas")
	flag.Parse()
	o.etcd, o.zookeeper = strings.Split(*etcd, ","), strings.Split(*zookeeper, ",")
	where := "etcd"
	if *zookeeper != "" {
		where = "zookeeper"
	}
	logx.Disable()
	log.SetLogger(log.NewStdLogger(io.Discard))
	call, err := open(*framework, where, o)
	fail(err)
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		path, ok := strings.CutPrefix(in.Text(), "call ")
		if !ok {
			fail(fmt.Errorf("unknown line %q", in.Text()))
		}
		ctx, done := context.WithTimeout(context.Background(), patience)
		if answer, err := call(ctx, path); err != nil {
			fmt.Printf("failed: %q\n", err.Error())
		} else {
			fmt.Println("called", answer)
		}
		done()
	}
}
