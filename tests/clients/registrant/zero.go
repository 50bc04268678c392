package main

import (
	"errors"
	"strconv"
	"time"

	"github.com/zeromicro/go-zero/core/discov"
	clientv3 "go.etcd.io/etcd/client/v3"
)

type zero struct {
	etcd      []string
	options   []discov.PubOption
	client    *clientv3.Client
	publisher *discov.Publisher
}

func newZero(o options) (registrar, error) {
	client, err := etcdClient(o)
	if err != nil {
		return nil, err
	}
	z := &zero{etcd: o.etcd, client: client}
	if o.user != "" {
		z.options = append(z.options, discov.WithPubEtcdAccount(o.user, o.pass))
	}
	return z, nil
}

func (z *zero) register(i instance) error {
	if z.publisher != nil {
		return errors.New("go-zero has no metadata")
	}
	options := z.options
	if id, err := strconv.ParseInt(i.id, 10, 64); err == nil {
		options = append(options, discov.WithId(id))
	}
	z.publisher = discov.NewPublisher(z.etcd, i.service, i.addr, options...)
	return z.publisher.KeepAlive()
}

// deregister waits until the key is gone: the publisher revokes its lease on a goroutine of its own.
func (z *zero) deregister(i instance) error {
	z.publisher.Stop()
	ctx, done := patient()
	defer done()
	for {
		found, err := z.client.Get(ctx, i.service+"/", clientv3.WithPrefix())
		if err != nil {
			return err
		}
		gone := true
		for _, kv := range found.Kvs {
			gone = gone && string(kv.Value) != i.addr
		}
		if gone {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}
