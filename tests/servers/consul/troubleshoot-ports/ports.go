// Package ports stands in for a package that Consul 1.16.6 imports and that no published release of
// its module holds. Only the diagnostic command `consul troubleshoot ports` calls it, never the agent.
package ports

import "fmt"

func TroubleshootDefaultPorts(host string) { unavailable() }

func TroubleShootCustomPorts(host, ports string) { unavailable() }

func unavailable() { fmt.Println("`consul troubleshoot ports` is not part of this build") }
