// consumer-consul finds an instance of a service in Consul with a framework's own client, and sends it a request with that
// framework's own means. It prints "ADDRESS BODY", as soon as there is an instance.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	kratosconsul "github.com/go-kratos/kratos/contrib/registry/consul/v2"
	kratoslog "github.com/go-kratos/kratos/v2/log"
	kratosregistry "github.com/go-kratos/kratos/v2/registry"
	kratoshttp "github.com/go-kratos/kratos/v2/transport/http"
	microconsul "github.com/go-micro/plugins/v4/registry/consul"
	"github.com/hashicorp/consul/api"
	"go-micro.dev/v4/logger"
	"go-micro.dev/v4/registry"
	"go-micro.dev/v4/selector"
)

// found is an address, and what was answered there.
type found func(ctx context.Context, service, path string) (address, body string, err error)

func get(ctx context.Context, address, path string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return "", err
	}
	return read(http.DefaultClient.Do(request))
}

func read(answer *http.Response, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, body)
	}
	return string(body), err
}

// plain is Consul's own client.
func plain(client *api.Client) found {
	return func(ctx context.Context, service, path string) (string, string, error) {
		entries, _, err := client.Health().Service(service, "", true, nil)
		if err != nil {
			return "", "", err
		}
		if len(entries) == 0 {
			return "", "", fmt.Errorf("no instance")
		}
		address := fmt.Sprintf("%s:%d", entries[0].Service.Address, entries[0].Service.Port)
		body, err := get(ctx, address, path)
		return address, body, err
	}
}

// kratos is a client of Kratos' HTTP transport, which resolves and balances by itself.
func kratos(client *api.Client) found {
	discovery := kratosconsul.New(client)
	return func(ctx context.Context, service, path string) (string, string, error) {
		instances, err := discovery.GetService(ctx, service)
		if err != nil {
			return "", "", err
		}
		if len(instances) == 0 {
			return "", "", fmt.Errorf("no instance")
		}
		caller, err := kratoshttp.NewClient(ctx, kratoshttp.WithDiscovery(kratosregistry.Discovery(discovery)),
			kratoshttp.WithEndpoint("discovery:///"+service), kratoshttp.WithBlock())
		if err != nil {
			return "", "", err
		}
		defer caller.Close()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+service+path, nil)
		if err != nil {
			return "", "", err
		}
		body, err := read(caller.Do(request))
		return strings.Join(instances[0].Endpoints, ","), body, err
	}
}

// micro is go-micro's selector on its registry.
func micro(address string) found {
	choose := selector.NewSelector(selector.Registry(microconsul.NewRegistry(registry.Addrs(address))))
	return func(ctx context.Context, service, path string) (string, string, error) {
		next, err := choose.Select(service)
		if err != nil {
			return "", "", err
		}
		node, err := next()
		if err != nil {
			return "", "", err
		}
		body, err := get(ctx, node.Address, path)
		return node.Address, body, err
	}
}

func main() {
	framework := flag.String("framework", "", "api (Consul's own client), kratos or go-micro")
	consul := flag.String("consul", "", "Consul agent host:port")
	service := flag.String("service", "", "service name")
	path := flag.String("path", "/", "what to ask for")
	flag.Parse()
	// Their own lines would stand between ours.
	kratoslog.SetLogger(kratoslog.NewStdLogger(io.Discard))
	logger.DefaultLogger = logger.NewLogger(logger.WithOutput(io.Discard))

	config := api.DefaultConfig()
	config.Address = *consul
	client, err := api.NewClient(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, "consumer-consul:", err)
		os.Exit(1)
	}
	frameworks := map[string]found{"api": plain(client), "kratos": kratos(client), "go-micro": micro(*consul)}
	call := frameworks[*framework]
	if call == nil || *consul == "" || *service == "" {
		fmt.Fprintln(os.Stderr, "consumer-consul: -framework api, kratos or go-micro, -consul and -service are needed")
		os.Exit(1)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		address, body, err := call(ctx, *service, *path)
		if err == nil {
			fmt.Println(address, body)
			return
		}
		select {
		case <-ctx.Done():
			fmt.Fprintln(os.Stderr, "consumer-consul:", err)
			os.Exit(1)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
