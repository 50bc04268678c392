// CoreDNS with the plugins that the tests use, and no others: with all of them it takes minutes to build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/file"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// The plugins work in this order.
	dnsserver.Directives = []string{"bind", "errors", "loadbalance", "template", "file"}
	coremain.Run()
}
