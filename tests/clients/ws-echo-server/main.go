// ws-echo-server sends every WebSocket message back. The text message "close CODE REASON" makes it close instead.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/coder/websocket"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on; port 0 takes a free one")
	id := flag.String("id", "", "value of x-server-id in the answer to the upgrade (default: the address)")
	flag.Parse()
	log.SetFlags(0)

	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	if *id == "" {
		*id = ln.Addr().String()
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("x-server-id", *id)
		// The tests' Host is a service name, never the page's origin.
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, Subprotocols: []string{"echo"}})
		if err != nil {
			return // Accept has answered.
		}
		defer ws.CloseNow()
		ws.SetReadLimit(64 << 20)
		for {
			kind, message, err := ws.Read(r.Context())
			if err != nil {
				return
			}
			if rest, asked := strings.CutPrefix(string(message), "close "); asked && kind == websocket.MessageText {
				code, reason := 0, ""
				if _, err := fmt.Sscanf(rest, "%d %s", &code, &reason); err == nil {
					_ = ws.Close(websocket.StatusCode(code), reason)
					return
				}
			}
			if err := ws.Write(r.Context(), kind, message); err != nil {
				return
			}
		}
	})}
	fmt.Printf("listening %s\n", ln.Addr())

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	done := make(chan struct{})
	go func() {
		<-stop
		_ = server.Shutdown(context.Background()) // Does not wait for upgraded connections.
		close(done)
	}()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-done
	fmt.Println("stopped")
}
