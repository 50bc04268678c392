package main

import (
	"context"
	"net"
	"os"
	"strconv"

	kratosnacos "github.com/go-kratos/kratos/contrib/registry/nacos/v2"
	"github.com/go-kratos/kratos/v2/registry"
	oldclients "github.com/nacos-group/nacos-sdk-go/clients"
	oldconstant "github.com/nacos-group/nacos-sdk-go/common/constant"
	"github.com/nacos-group/nacos-sdk-go/v2/clients"
	"github.com/nacos-group/nacos-sdk-go/v2/clients/naming_client"
	"github.com/nacos-group/nacos-sdk-go/v2/common/constant"
	"github.com/nacos-group/nacos-sdk-go/v2/vo"
	oldvo "github.com/nacos-group/nacos-sdk-go/vo"
)

// nacos registers with Nacos' own client for Go.
type nacos struct {
	client naming_client.INamingClient
}

func nacosClient(o options) (naming_client.INamingClient, error) {
	host, port, err := splitAddr(o.nacos)
	if err != nil {
		return nil, err
	}
	// What it writes is of no use after a test.
	dir, err := os.MkdirTemp("", "registrant")
	if err != nil {
		return nil, err
	}
	config := constant.NewClientConfig(
		constant.WithNamespaceId("public"), constant.WithNotLoadCacheAtStart(true), constant.WithLogLevel("error"),
		constant.WithLogDir(dir), constant.WithCacheDir(dir), constant.WithUsername(o.user), constant.WithPassword(o.pass),
	)
	servers := []constant.ServerConfig{*constant.NewServerConfig(host, port)}
	return clients.NewNamingClient(vo.NacosClientParam{ClientConfig: config, ServerConfigs: servers})
}

func newNacos(o options) (registrar, error) {
	client, err := nacosClient(o)
	return &nacos{client}, err
}

// newKratosNacos uses the client that Kratos' own module uses: the first version, which keeps its instances by beats over
// HTTP.
func newKratosNacos(o options) (registrar, error) {
	host, port, err := splitAddr(o.nacos)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "registrant")
	if err != nil {
		return nil, err
	}
	client, err := oldclients.NewNamingClient(oldvo.NacosClientParam{
		ClientConfig: &oldconstant.ClientConfig{
			NamespaceId: "public", NotLoadCacheAtStart: true, LogLevel: "error", LogDir: dir, CacheDir: dir,
			Username: o.user, Password: o.pass,
		},
		ServerConfigs: []oldconstant.ServerConfig{*oldconstant.NewServerConfig(host, port)},
	})
	if err != nil {
		return nil, err
	}
	one := kratosnacos.New(client)
	return &kratos{open: func(context.Context) registry.Registrar { return one }}, nil
}

func (n *nacos) register(i instance) error {
	host, port, err := splitAddr(i.addr)
	if err != nil {
		return err
	}
	weight := 1.0
	if text, ok := i.meta["weight"]; ok {
		if weight, err = strconv.ParseFloat(text, 64); err != nil {
			return err
		}
	}
	meta := map[string]string{"version": i.version}
	for k, v := range i.meta {
		meta[k] = v
	}
	_, err = n.client.RegisterInstance(vo.RegisterInstanceParam{
		Ip: host, Port: port, ServiceName: i.service, Weight: weight, Enable: true, Healthy: true, Ephemeral: true, Metadata: meta,
	})
	return err
}

func (n *nacos) deregister(i instance) error {
	host, port, err := splitAddr(i.addr)
	if err != nil {
		return err
	}
	_, err = n.client.DeregisterInstance(vo.DeregisterInstanceParam{Ip: host, Port: port, ServiceName: i.service, Ephemeral: true})
	return err
}

func splitAddr(addr string) (string, uint64, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	return host, port, err
}
