package pillion;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import io.opentelemetry.api.baggage.propagation.W3CBaggagePropagator;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.propagation.ContextPropagators;
import io.opentelemetry.context.propagation.TextMapPropagator;
import io.opentelemetry.instrumentation.javahttpclient.JavaHttpClientTelemetry;
import io.opentelemetry.instrumentation.javahttpserver.JavaHttpServerTelemetry;
import io.opentelemetry.sdk.OpenTelemetrySdk;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Executors;

/**
 * One service of a chain, as in ../chain: it answers with its name and version, and with what the next service says, if there
 * is one. It knows an HTTP proxy and nothing of pillion; what goes on from the request that it gets to the one that it
 * makes is what OpenTelemetry's SDK carries by itself.
 */
public class Chain {
    static final String USAGE = "chain-java -listen HOST:PORT -service NAME -version VERSION [-next NAME] [-egress HOST:PORT]";

    final String self;
    final String next;
    final HttpClient client;

    Chain(Map<String, String> options, HttpClient client) {
        self = options.get("-service") + ":" + options.get("-version");
        next = options.get("-next");
        this.client = client;
    }

    void answer(HttpExchange exchange) throws IOException {
        var status = 200;
        var text = self;
        try {
            if (!next.isEmpty()) {
                var uri = URI.create("http://" + next + exchange.getRequestURI().getPath());
                var response = client.send(HttpRequest.newBuilder(uri).build(), BodyHandlers.ofString());
                status = response.statusCode();
                text += " " + response.body();
            }
        } catch (IOException | InterruptedException error) {
            status = 502;
            text = error.toString();
        }
        var body = text.getBytes();
        exchange.sendResponseHeaders(status, body.length);
        exchange.getResponseBody().write(body);
        exchange.close();
    }

    static InetSocketAddress address(String text) {
        var colon = text.lastIndexOf(':');
        return new InetSocketAddress(text.substring(0, colon), Integer.parseInt(text.substring(colon + 1)));
    }

    public static void main(String[] args) throws Exception {
        var options = new HashMap<String, String>(Map.of("-next", "", "-egress", "127.0.0.1:4140"));
        for (int i = 0; i + 1 < args.length; i += 2) {
            options.put(args[i], args[i + 1]);
        }
        if (!options.keySet().containsAll(List.of("-listen", "-service", "-version"))) {
            System.out.println(USAGE);
            System.exit(args.length == 1 && args[0].equals("-h") ? 0 : 1);
        }
        var propagator = TextMapPropagator.composite(
                W3CTraceContextPropagator.getInstance(), W3CBaggagePropagator.getInstance());
        var telemetry = OpenTelemetrySdk.builder().setPropagators(ContextPropagators.create(propagator)).build();
        var plain = HttpClient.newBuilder()
                .version(HttpClient.Version.HTTP_1_1)
                .proxy(ProxySelector.of(address(options.get("-egress"))))
                .build();
        var chain = new Chain(options, JavaHttpClientTelemetry.create(telemetry).newHttpClient(plain));
        var server = HttpServer.create(address(options.get("-listen")), 0);
        var context = server.createContext("/", chain::answer);
        context.getFilters().add(JavaHttpServerTelemetry.create(telemetry).newFilter());
        server.setExecutor(Executors.newCachedThreadPool());
        server.start();
        var at = server.getAddress();
        System.out.println("listening " + at.getAddress().getHostAddress() + ":" + at.getPort());
    }
}
