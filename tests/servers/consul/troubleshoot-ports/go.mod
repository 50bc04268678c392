module github.com/hashicorp/consul/troubleshoot/ports

go 1.24
