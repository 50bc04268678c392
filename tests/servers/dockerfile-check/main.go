// Checks a Dockerfile with BuildKit's own rules, those of `docker build --check`, without a daemon: prints what they find,
// and fails if that is anything.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// images stands for every base image: nothing is fetched.
type images struct{}

func (images) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	config, err := json.Marshal(ocispecs.Image{Platform: ocispecs.Platform{Architecture: "amd64", OS: "linux"}})
	return ref, digest.FromBytes(config), config, err
}

func main() {
	if len(os.Args) != 2 || os.Args[1] == "-h" {
		fmt.Println("usage: dockerfile-check FILE")
		os.Exit(64)
	}
	found, err := check(os.Args[1])
	for _, text := range found {
		fmt.Println(text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil || len(found) > 0 {
		os.Exit(1)
	}
}

func check(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var opt dockerfile2llb.ConvertOpt
	opt.MetaResolver = images{}
	opt.SourceMap = llb.NewSourceMap(nil, file, "Dockerfile", text)
	opt.SourceMap.Definition = &llb.Definition{}
	results, err := dockerfile2llb.DockerfileLint(context.Background(), text, opt)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, warning := range results.Warnings {
		var line int32
		if warning.Location != nil && len(warning.Location.Ranges) > 0 {
			line = warning.Location.Ranges[0].Start.Line
		}
		found = append(found, fmt.Sprintf("%s:%d: %s: %s", file, line, warning.RuleName, warning.Detail))
	}
	if results.Error != nil {
		found = append(found, fmt.Sprintf("%s: %s", file, results.Error.Message))
	}
	return found, nil
}
