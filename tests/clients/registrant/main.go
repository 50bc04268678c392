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
	zookeeper     []string
	eureka        string
	awsZone       string
	nacos         string
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
	case "kratos/zookeeper":
		return newKratosZookeeper(o)
	case "go-micro/zookeeper":
		return newMicroZookeeper(o), nil
	case "go-micro/etcd":
		return newMicroEtcd(o), nil
	case "go-micro/consul":
		return newMicroConsul(o), nil
	case "go-zero/etcd":
		return newZero(o)
	case "grpc/etcd":
		return newGrpc(o)
	case "fargo/eureka":
		return newFargo(o), nil
	case "kratos/nacos":
		return newKratosNacos(o)
	case "nacos/nacos":
		return newNacos(o)
	}
	return nil, fmt.Errorf("no client for -framework %s with %s (kratos: etcd, consul or nacos; go-micro: etcd, consul or zookeeper; go-zero, grpc: etcd; fargo: eureka; nacos: nacos)", framework, registry)
}

func main() {
	var i instance
	var o options
	i.meta = map[string]string{}
	framework := flag.String("framework", "", "kratos, go-micro, go-zero, grpc, fargo or nacos")
	flag.StringVar(&i.service, "service", "", "service name (go-zero: the key, grpc: the target)")
	flag.StringVar(&i.id, "id", "", "instance id (default: SERVICE-ADDR with : as -; go-zero uses it only if it is a number)")
	flag.StringVar(&i.addr, "addr", "", "address of the instance, host:port")
	flag.StringVar(&i.version, "version", "v1.0.0", "version (kratos, go-micro, nacos)")
	flag.StringVar(&i.scheme, "scheme", "http", "scheme of the endpoint (kratos): http, https, grpc, grpcs; several joined by a comma; fargo: https enables the secure port 8443")
	flag.Var(metaFlag(i.meta), "meta", "metadata k=v, may be repeated (kratos, go-micro, grpc, fargo, nacos)")
	etcd := flag.String("etcd", "", "etcd endpoints host:port, joined by commas")
	flag.StringVar(&o.user, "etcd-user", "", "user:password (nacos, too)")
	flag.StringVar(&o.nacos, "nacos", "", "Nacos host:port (nacos takes its weight from the metadata, too)")
	flag.StringVar(&o.consul, "consul", "", "Consul agent host:port")
	zookeeper := flag.String("zookeeper", "", "ZooKeeper servers host:port, joined by commas")
	flag.StringVar(&o.consulToken, "consul-token", "", "Consul ACL token")
	flag.StringVar(&o.eureka, "eureka", "", "Eureka's URL with its path")
	flag.StringVar(&o.awsZone, "aws-zone", "", "fargo: registers as an instance at Amazon in this zone")
	flag.DurationVar(&o.ttl, "ttl", 15*time.Second, "time to live (go-zero always uses 10s, kratos in Consul -check-interval)")
	flag.IntVar(&o.checkInterval, "check-interval", 10, "kratos in Consul: seconds between the TCP checks; the TTL check takes twice that; 0 turns the TCP check off")
	flag.StringVar(&o.prefix, "prefix", "", "kratos in etcd: another namespace than /microservices")
	flag.Parse()

	registry, chosen := "", 0
	for name, address := range map[string]string{"etcd": *etcd, "consul": o.consul, "zookeeper": *zookeeper, "eureka": o.eureka, "nacos": o.nacos} {
		if address != "" {
			registry = name
			chosen++
		}
	}
	if chosen != 1 || i.service == "" || i.addr == "" {
		fail(fmt.Errorf("-service, -addr and one of -etcd, -consul, -zookeeper, -eureka and -nacos are needed"))
	}
	o.etcd, o.zookeeper = strings.Split(*etcd, ","), strings.Split(*zookeeper, ",")
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
