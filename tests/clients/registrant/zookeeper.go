package main

import (
	kratoszookeeper "github.com/go-kratos/kratos/contrib/registry/zookeeper/v2"
	"github.com/go-kratos/kratos/v2/registry"
	microzookeeper "github.com/go-micro/plugins/v4/registry/zookeeper"
	"github.com/go-zookeeper/zk"
	microregistry "go-micro.dev/v4/registry"
)

// kratosZookeeper leaves a node that is there alone, so another value needs another node: it deregisters first.
type kratosZookeeper struct {
	registry *kratoszookeeper.Registry
	of       *registry.ServiceInstance
}

func newKratosZookeeper(o options) (registrar, error) {
	conn, _, err := zk.Connect(o.zookeeper, patience, zk.WithLogInfo(false))
	if err != nil {
		return nil, err
	}
	return &kratosZookeeper{registry: kratoszookeeper.New(conn)}, nil
}

func (k *kratosZookeeper) register(i instance) error {
	if k.of != nil {
		if err := k.deregister(i); err != nil {
			return err
		}
	}
	ctx, done := patient()
	defer done()
	k.of = kratosInstance(i)
	return k.registry.Register(ctx, k.of)
}

func (k *kratosZookeeper) deregister(instance) error {
	ctx, done := patient()
	defer done()
	return k.registry.Deregister(ctx, k.of)
}

func newMicroZookeeper(o options) registrar {
	return startMicro(microzookeeper.NewRegistry(microregistry.Addrs(o.zookeeper...)), o.ttl)
}
