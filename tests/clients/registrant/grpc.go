package main

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
)

// grpcNaming is etcd's own naming format, which grpc-go's resolver for etcd reads.
type grpcNaming struct {
	client *clientv3.Client
	ttl    int64
	lease  clientv3.LeaseID
}

func newGrpc(o options) (registrar, error) {
	client, err := etcdClient(o)
	if err != nil {
		return nil, err
	}
	return &grpcNaming{client: client, ttl: max(int64(o.ttl.Seconds()), 1)}, nil
}

func (g *grpcNaming) register(i instance) error {
	ctx, done := patient()
	defer done()
	manager, err := endpoints.NewManager(g.client, i.service)
	if err != nil {
		return err
	}
	if g.lease == clientv3.NoLease {
		grant, err := g.client.Grant(ctx, g.ttl)
		if err != nil {
			return err
		}
		g.lease = grant.ID
		alive, err := g.client.KeepAlive(context.Background(), g.lease)
		if err != nil {
			return err
		}
		go func() {
			for range alive { // Has to be read, or the client complains.
			}
		}()
	}
	endpoint := endpoints.Endpoint{Addr: i.addr}
	if len(i.meta) > 0 {
		endpoint.Metadata = i.meta
	}
	return manager.AddEndpoint(ctx, i.service+"/"+i.addr, endpoint, clientv3.WithLease(g.lease))
}

func (g *grpcNaming) deregister(i instance) error {
	ctx, done := patient()
	defer done()
	manager, err := endpoints.NewManager(g.client, i.service)
	if err != nil {
		return err
	}
	return manager.DeleteEndpoint(ctx, i.service+"/"+i.addr)
}
