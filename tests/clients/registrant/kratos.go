package main

import (
	"context"
	"strings"

	kratosconsul "github.com/go-kratos/kratos/contrib/registry/consul/v2"
	kratosetcd "github.com/go-kratos/kratos/contrib/registry/etcd/v2"
	"github.com/go-kratos/kratos/v2/registry"
	"github.com/hashicorp/consul/api"
)

// kratos holds a registry per registration: registering again on the same one would leave its first heartbeat running,
// which puts the old value back whenever its lease ends.
type kratos struct {
	open    func(context.Context) registry.Registrar
	current registry.Registrar
	of      *registry.ServiceInstance
	stop    context.CancelFunc
}

func newKratosEtcd(o options) (registrar, error) {
	client, err := etcdClient(o)
	if err != nil {
		return nil, err
	}
	return &kratos{open: func(ctx context.Context) registry.Registrar {
		options := []kratosetcd.Option{kratosetcd.Context(ctx), kratosetcd.RegisterTTL(o.ttl)}
		if o.prefix != "" {
			options = append(options, kratosetcd.Namespace(o.prefix))
		}
		return kratosetcd.New(client, options...)
	}}, nil
}

func newKratosConsul(o options) (registrar, error) {
	config := api.DefaultConfig()
	config.Address, config.Token = o.consul, o.consulToken
	client, err := api.NewClient(config)
	if err != nil {
		return nil, err
	}
	// One registry is right here: it ends the earlier heartbeat of the same id itself.
	interval := max(o.checkInterval, 1)
	one := kratosconsul.New(client, kratosconsul.WithHealthCheck(o.checkInterval > 0), kratosconsul.WithHealthCheckInterval(interval))
	return &kratos{open: func(context.Context) registry.Registrar { return one }}, nil
}

func (k *kratos) register(i instance) error {
	ctx, cancel := context.WithCancel(context.Background())
	next := k.open(ctx)
	of := kratosInstance(i)
	limited, done := patient()
	defer done()
	if err := next.Register(limited, of); err != nil {
		cancel()
		return err
	}
	if k.stop != nil {
		k.stop()
	}
	k.current, k.of, k.stop = next, of, cancel
	return nil
}

// kratosInstance is what a Kratos application registers.
func kratosInstance(i instance) *registry.ServiceInstance {
	of := &registry.ServiceInstance{ID: i.id, Name: i.service, Version: i.version, Metadata: i.meta}
	for _, scheme := range strings.Split(i.scheme, ",") {
		of.Endpoints = append(of.Endpoints, scheme+"://"+i.addr)
	}
	return of
}

func (k *kratos) deregister(instance) error {
	ctx, done := patient()
	defer done()
	return k.current.Deregister(ctx, k.of)
}
