// Reads a Nomad job as `nomad job run` does, and prints it as the JSON that Nomad's API takes; fails where it is wrong.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/hashicorp/nomad/jobspec2"
)

func main() {
	if len(os.Args) != 2 || os.Args[1] == "-h" {
		fmt.Println("usage: nomad-check FILE")
		os.Exit(64)
	}
	file := os.Args[1]
	text, err := os.ReadFile(file)
	if err == nil {
		err = check(file, text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func check(file string, text []byte) error {
	job, err := jobspec2.ParseWithConfig(&jobspec2.ParseConfig{Path: file, Body: text, AllowFS: true, Strict: true})
	if err != nil {
		return err
	}
	// The defaults, as the API fills them in.
	job.Canonicalize()
	return json.NewEncoder(os.Stdout).Encode(job)
}
