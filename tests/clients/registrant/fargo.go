package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hudl/fargo"
	"github.com/op/go-logging"
)

// fargoClient registers in Eureka as go-kit, Kitex and Hertz do. It sends the heartbeats itself: fargo leaves them to
// the application.
type fargoClient struct {
	conn fargo.EurekaConnection
	zone string
	of   *fargo.Instance
	stop chan struct{}
}

func newFargo(o options) registrar {
	logging.SetLevel(logging.CRITICAL, "fargo")
	conn := fargo.NewConn(o.eureka)
	conn.UseJson = true
	return &fargoClient{conn: conn, zone: o.awsZone}
}

func (e *fargoClient) register(i instance) error {
	host, text, err := net.SplitHostPort(i.addr)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	of := &fargo.Instance{
		InstanceId: i.id, HostName: "host-of-" + i.id, App: strings.ToUpper(i.service), IPAddr: host,
		VipAddress: i.service, SecureVipAddress: i.service, Status: fargo.UP, Overriddenstatus: fargo.UNKNOWN,
		Port: port, PortEnabled: true, SecurePort: 8443, SecurePortEnabled: i.scheme == "https",
		DataCenterInfo: fargo.DataCenterInfo{Name: fargo.MyOwn},
		LeaseInfo:      fargo.LeaseInfo{RenewalIntervalInSecs: 10, DurationInSecs: 30},
	}
	if e.zone != "" {
		of.DataCenterInfo = fargo.DataCenterInfo{
			Name: fargo.Amazon, Metadata: fargo.AmazonMetadataType{InstanceID: i.id, AvailabilityZone: e.zone},
		}
	}
	for k, v := range i.meta {
		of.SetMetadataString(k, v)
	}
	if err := e.conn.ReregisterInstance(of); err != nil {
		return err
	}
	if e.stop == nil {
		e.stop = make(chan struct{})
		go e.beat(of)
	}
	e.of = of
	return nil
}

func (e *fargoClient) beat(of *fargo.Instance) {
	ticks := time.NewTicker(10 * time.Second)
	defer ticks.Stop()
	for {
		select {
		case <-e.stop:
			return
		case <-ticks.C:
			if err := e.conn.HeartBeatInstance(of); err != nil {
				fmt.Fprintln(os.Stderr, "registrant: heartbeat:", err)
			}
		}
	}
}

func (e *fargoClient) deregister(instance) error {
	close(e.stop)
	return e.conn.DeregisterInstance(e.of)
}
