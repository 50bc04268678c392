package pillion;

import com.netflix.appinfo.ApplicationInfoManager;
import com.netflix.appinfo.InstanceInfo.InstanceStatus;
import com.netflix.appinfo.MyDataCenterInstanceConfig;
import com.netflix.appinfo.providers.EurekaConfigBasedInstanceInfoProvider;
import com.netflix.discovery.DefaultEurekaClientConfig;
import com.netflix.discovery.DiscoveryClient;
import com.netflix.discovery.Jersey3DiscoveryClientOptionalArgs;
import com.netflix.discovery.shared.transport.jersey3.Jersey3TransportClientFactories;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Registers one instance with Eureka's own client. Like the registrant in Go it prints "registered" and then obeys lines
 * on standard input:
 *
 * <pre>
 * meta k=v k=v   sets these metadata; prints "updated"
 * status STATUS  as the application's own health check would; prints "updated"
 * deregister     deregisters, prints "deregistered", exits
 * </pre>
 */
public class Registrant {
    static final String USAGE =
        "registrant-eureka -eureka URL -service NAME -id ID -addr HOST:PORT [-secure-port PORT] [-vip NAME] [-meta k=v]...";

    /** What is registered. */
    static class Instance extends MyDataCenterInstanceConfig {
        final Map<String, String> options = new HashMap<>();
        final Map<String, String> meta = new HashMap<>();

        Instance(String[] args) {
            for (int i = 0; i + 1 < args.length; i += 2) {
                if (args[i].equals("-meta")) {
                    put(meta, args[i + 1]);
                } else {
                    options.put(args[i], args[i + 1]);
                }
            }
            if (!options.keySet().containsAll(List.of("-eureka", "-service", "-id", "-addr"))) {
                System.err.println(USAGE);
                System.exit(1);
            }
        }

        static void put(Map<String, String> meta, String pair) {
            var split = pair.split("=", 2);
            meta.put(split[0], split[1]);
        }

        String[] address() {
            return options.get("-addr").split(":");
        }

        @Override
        public String getInstanceId() {
            return options.get("-id");
        }

        @Override
        public String getAppname() {
            return options.get("-service");
        }

        @Override
        public String getVirtualHostName() {
            return options.getOrDefault("-vip", getAppname());
        }

        @Override
        public String getSecureVirtualHostName() {
            return getVirtualHostName();
        }

        @Override
        public String getHostName(boolean refresh) {
            return "host-of-" + getInstanceId();
        }

        @Override
        public String getIpAddress() {
            return address()[0];
        }

        @Override
        public int getNonSecurePort() {
            return Integer.parseInt(address()[1]);
        }

        @Override
        public boolean getSecurePortEnabled() {
            return options.containsKey("-secure-port");
        }

        @Override
        public int getSecurePort() {
            return Integer.parseInt(options.getOrDefault("-secure-port", "443"));
        }

        @Override
        public Map<String, String> getMetadataMap() {
            return meta;
        }

        @Override
        public boolean isInstanceEnabledOnit() {
            return true;
        }
    }

    /** How the client works: it tells of a change within a second. */
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
        public boolean shouldFetchRegistry() {
            return false;
        }

        @Override
        public boolean shouldEnforceRegistrationAtInit() {
            return true;
        }

        @Override
        public int getInstanceInfoReplicationIntervalSeconds() {
            return 1;
        }

        @Override
        public int getInitialInstanceInfoReplicationIntervalSeconds() {
            return 1;
        }
    }

    public static void main(String[] args) throws Exception {
        if (args.length == 1 && args[0].equals("-h")) {
            System.out.println(USAGE);
            return;
        }
        var instance = new Instance(args);
        var info = new ApplicationInfoManager(instance, new EurekaConfigBasedInstanceInfoProvider(instance).get());
        var client = new DiscoveryClient(
            info,
            new Client(instance.options.get("-eureka")),
            new Jersey3TransportClientFactories(),
            new Jersey3DiscoveryClientOptionalArgs());
        System.out.println("registered");
        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (var line = lines.readLine(); line != null; line = lines.readLine()) {
            var words = line.trim().split(" +");
            switch (words[0]) {
                case "meta" -> {
                    var meta = new HashMap<String, String>();
                    for (int i = 1; i < words.length; i++) {
                        Instance.put(meta, words[i]);
                    }
                    info.registerAppMetadata(meta);
                    System.out.println("updated");
                }
                case "status" -> {
                    info.setInstanceStatus(InstanceStatus.valueOf(words[1]));
                    System.out.println("updated");
                }
                case "deregister" -> {
                    client.shutdown();
                    System.out.println("deregistered");
                    System.exit(0);
                }
                default -> System.err.println("registrant-eureka: unknown line " + line);
            }
        }
    }
}
