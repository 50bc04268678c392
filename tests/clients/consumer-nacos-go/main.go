// consumer-nacos-go finds a service with Nacos' own client for Go, as an application does that calls it. It prints the
// instances that it is told, a line of `HOST:PORT HEALTHY WEIGHT` each; then it calls a healthy one, if there is any, and
// prints `called HOST:PORT BODY`.
package main

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/nacos-group/nacos-sdk-go/v2/clients"
	"github.com/nacos-group/nacos-sdk-go/v2/common/constant"
	"github.com/nacos-group/nacos-sdk-go/v2/vo"
)

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "consumer-nacos-go:", err)
		os.Exit(1)
	}
}

func main() {
	nacos := flag.String("nacos", "", "Nacos host:port")
	service := flag.String("service", "", "service name")
	path := flag.String("path", "/", "what to ask the service for")
	flag.Parse()
	host, text, err := net.SplitHostPort(*nacos)
	fail(err)
	port, err := strconv.ParseUint(text, 10, 16)
	fail(err)
	// What it writes is of no use after a test.
	dir, err := os.MkdirTemp("", "consumer")
	fail(err)
	defer os.RemoveAll(dir)
	client, err := clients.NewNamingClient(vo.NacosClientParam{
		ClientConfig: constant.NewClientConfig(constant.WithNamespaceId("public"), constant.WithNotLoadCacheAtStart(true),
			constant.WithLogLevel("error"), constant.WithLogDir(dir), constant.WithCacheDir(dir)),
		ServerConfigs: []constant.ServerConfig{*constant.NewServerConfig(host, port)},
	})
	fail(err)
	found, err := client.GetService(vo.GetServiceParam{ServiceName: *service})
	fail(err)
	for _, i := range found.Hosts {
		fmt.Printf("%s:%d %t %g\n", i.Ip, i.Port, i.Healthy, i.Weight)
	}
	one, err := client.SelectOneHealthyInstance(vo.SelectOneHealthInstanceParam{ServiceName: *service})
	if err != nil {
		return
	}
	address := net.JoinHostPort(one.Ip, strconv.FormatUint(one.Port, 10))
	answer, err := http.Get("http://" + address + *path)
	fail(err)
	body, err := io.ReadAll(answer.Body)
	fail(err)
	fmt.Println("called", address, strings.TrimSpace(string(body)))
}
