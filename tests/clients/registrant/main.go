// registrant registers one instance of a service with a framework's own registry client, so that the tests read what
// that framework really writes. It prints "registered" and then obeys lines on standard input:
//
//	meta k=v k=v   register again with this metadata; prints "updated"
//	deregister     deregister, print "deregistered", exit
//
// SIGTERM and SIGINT deregister too. The end of standard input alone does nothing.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/zeromicro/go-zero/core/logx"
)

// instance is what to register.
type instance struct {
	service, id, addr, version, scheme string
	meta                               map[string]string
}

// registrar is one framework's client. register is called again when the metadata changed.
type registrar interface {
	register(instance) error
	deregister(instance) error
}

// options say where and how to register.
type options struct {
	etcd          []string
	user, pass    string
	consul        string
	consulToken   string
	ttl           time.Duration
	checkInterval int
	prefix        string
}

type metaFlag map[string]string

func (m metaFlag) String() string { return "" }
func (m metaFlag) Set(pair string) error {
	k, v, ok := strings.Cut(pair, "=")
	if !ok {
		return fmt.Errorf("%q: expected key=value", pair)
	}
	m[k] = v
	return nil
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "registrant:", err)
		os.Exit(1)
	}
}

func open(framework, registry string, o options) (registrar, error) {
	switch framework + "/" + registry {
	case "kratos/etcd":
		return newKratosEtcd(o)
	case "kratos/consul":
		return newKratosConsul(o)
	case "go-micro/etcd":
		return newMicroEtcd(o), nil
	case "go-micro/consul":
		return newMicroConsul(o), nil
	case "go-zero/etcd":
		return newZero(o)
	case "grpc/etcd":
		return newGrpc(o)
	}
	return nil, fmt.Errorf("no client for -framework %s with %s (kratos, go-micro: etcd or consul; go-zero, grpc: etcd)", framework, registry)
}

func main() {
	var i instance
	var o options
	i.meta = map[string]string{}
	framework := flag.String("framework", "", "kratos, go-micro, go-zero or grpc")
	flag.StringVar(&i.service, "service", "", "service name (go-zero: the key, grpc: the target)")
	flag.StringVar(&i.id, "id", "", "instance id (default: SERVICE-ADDR with : as -; go-zero uses it only if it is a number)")
	flag.StringVar(&i.addr, "addr", "", "address of the instance, host:port")
	flag.StringVar(&i.version, "version", "v1.0.0", "version (kratos, go-micro)")
	flag.StringVar(&i.scheme, "scheme", "http", "scheme of the endpoint (kratos): http, https, grpc, grpcs; several joined by a comma")
	flag.Var(metaFlag(i.meta), "meta", "metadata k=v, may be repeated (kratos, go-micro, grpc)")
	etcd := flag.String("etcd", "", "etcd endpoints host:port, joined by commas")
	flag.StringVar(&o.user, "etcd-user", "", "etcd user:password")
	flag.StringVar(&o.consul, "consul", "", "Consul agent host:port")
	flag.StringVar(&o.consulToken, "consul-token", "", "Consul ACL token")
	flag.DurationVar(&o.ttl, "ttl", 15*time.Second, "time to live (go-zero always uses 10s, kratos in Consul -check-interval)")
	flag.IntVar(&o.checkInterval, "check-interval", 10, "kratos in Consul: seconds between the TCP checks; the TTL check takes twice that; 0 turns the TCP check off")
	flag.StringVar(&o.prefix, "prefix", "", "kratos in etcd: another namespace than /microservices")
	flag.Parse()

	registry := "etcd"
	if *etcd == "" {
		registry = "consul"
	}
	if (*etcd == "") == (o.consul == "") || i.service == "" || i.addr == "" {
		fail(fmt.Errorf("-service, -addr and one of -etcd and -consul are needed"))
	}
	if *etcd != "" {
		o.etcd = strings.Split(*etcd, ",")
	}
	o.user, o.pass, _ = strings.Cut(o.user, ":")
	if i.id == "" {
		i.id = i.service + "-" + strings.ReplaceAll(i.addr, ":", "-")
	}
	// Only because it is linked in, go-zero would write its own lines between ours.
	logx.Disable()
	r, err := open(*framework, registry, o)
	fail(err)
	fail(r.register(i))
	fmt.Println("registered")

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	lines := make(chan string)
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			lines <- strings.TrimSpace(in.Text())
		}
	}()
	for {
		select {
		case <-stop:
		case line := <-lines:
			words := strings.Fields(line)
			if len(words) > 0 && words[0] == "meta" {
				meta := map[string]string{}
				for _, w := range words[1:] {
					fail(metaFlag(meta).Set(w))
				}
				i.meta = meta
				fail(r.register(i))
				fmt.Println("updated")
				continue
			}
			if line != "deregister" {
				fmt.Fprintf(os.Stderr, "registrant: unknown line %q\n", line)
				continue
			}
		}
		break
	}
	fail(r.deregister(i))
	fmt.Println("deregistered")
}
