package pillion;

import com.netflix.appinfo.ApplicationInfoManager;
import com.netflix.appinfo.MyDataCenterInstanceConfig;
import com.netflix.appinfo.providers.EurekaConfigBasedInstanceInfoProvider;
import com.netflix.discovery.DefaultEurekaClientConfig;
import com.netflix.discovery.DiscoveryClient;
import com.netflix.discovery.Jersey3DiscoveryClientOptionalArgs;
import com.netflix.discovery.shared.transport.jersey3.Jersey3TransportClientFactories;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Finds an instance by its VIP address with Eureka's own client, as Spring Cloud does, and sends it a request. Prints
 * "HOST:PORT ID ZONE BODY" as soon as there is one.
 */
public class Consumer {
    static final String USAGE = "consumer-eureka -eureka URL -service NAME [-path PATH]";

    /** It asks often. */
    static class Client extends DefaultEurekaClientConfig {
        final String url;

        Client(String url) {
            this.url = url;
        }

        @Override
        public List<String> getEurekaServerServiceUrls(String zone) {
            return List.of(url);
        }

        @Override
        public boolean shouldRegisterWithEureka() {
            return false;
        }

        @Override
        public int getRegistryFetchIntervalSeconds() {
            return 1;
        }
    }

    public static void main(String[] args) throws Exception {
        var options = new HashMap<String, String>(Map.of("-path", "/"));
        for (int i = 0; i + 1 < args.length; i += 2) {
            options.put(args[i], args[i + 1]);
        }
        if (!options.keySet().containsAll(List.of("-eureka", "-service"))) {
            System.out.println(USAGE);
            System.exit(args.length == 1 && args[0].equals("-h") ? 0 : 1);
        }
        var config = new MyDataCenterInstanceConfig();
        var info = new ApplicationInfoManager(config, new EurekaConfigBasedInstanceInfoProvider(config).get());
        var client = new DiscoveryClient(
            info,
            new Client(options.get("-eureka")),
            new Jersey3TransportClientFactories(),
            new Jersey3DiscoveryClientOptionalArgs());
        var found = client.getInstancesByVipAddress(options.get("-service"), false);
        for (int tries = 0; found.isEmpty(); tries++) {
            if (tries == 200) {
                System.err.println("consumer-eureka: no instance");
                System.exit(1);
            }
            Thread.sleep(100);
            found = client.getInstancesByVipAddress(options.get("-service"), false);
        }
        var one = found.get(0);
        var at = one.getHostName() + ":" + one.getPort();
        var request = HttpRequest.newBuilder(URI.create("http://" + at + options.get("-path"))).build();
        var answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
        System.out.println(at + " " + one.getInstanceId() + " " + one.getMetadata().get("zone") + " " + answer.body());
        client.shutdown();
        System.exit(0);
    }
}
