package main

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const patience = 10 * time.Second

func etcdClient(o options) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: o.etcd, DialTimeout: patience, Username: o.user, Password: o.pass, Logger: zap.NewNop(),
	})
}

func patient() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), patience)
}
