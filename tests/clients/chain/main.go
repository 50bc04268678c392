// chain is one service of a chain. It answers with the names of the services and the versions that a request has come
// through, itself first: it asks the next service, if it has one, and puts itself before what that says.
//
// It knows nothing of pillion but the address of an HTTP proxy, and nothing of versions but its own name: what goes on from
// the request that it gets to the one that it makes is what OpenTelemetry's SDK carries by itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on; port 0 takes a free one")
	service := flag.String("service", "", "what it is called")
	version := flag.String("version", "", "its version")
	next := flag.String("next", "", "the service that it calls; without one it is the last")
	egress := flag.String("egress", "", "address of the HTTP proxy that its calls go through")
	flag.Parse()
	log.SetFlags(0)

	// As OpenTelemetry's documentation has it: https://opentelemetry.io/docs/languages/go/instrumentation/.
	provider := trace.NewTracerProvider()
	defer func() { _ = provider.Shutdown(context.Background()) }()
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{}))

	transport := &http.Transport{
		Proxy:               http.ProxyURL(&url.URL{Scheme: "http", Host: *egress}),
		MaxIdleConnsPerHost: 64,
	}
	client := &http.Client{Transport: otelhttp.NewTransport(transport), Timeout: 30 * time.Second}

	answer := func(w http.ResponseWriter, r *http.Request) {
		self := *service + ":" + *version
		if *next == "" {
			fmt.Fprint(w, self)
			return
		}
		request, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://"+*next+r.URL.Path, nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		response, err := client.Do(request)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer response.Body.Close()
		rest, err := io.ReadAll(response.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.WriteHeader(response.StatusCode)
		fmt.Fprintf(w, "%s %s", self, rest)
	}

	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: otelhttp.NewHandler(http.HandlerFunc(answer), *service)}
	fmt.Printf("listening %s\n", ln.Addr())

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	done := make(chan struct{})
	go func() {
		<-stop
		_ = server.Shutdown(context.Background())
		close(done)
	}()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-done
}
