package pillion;

import com.alibaba.nacos.api.NacosFactory;
import com.alibaba.nacos.api.PropertyKeyConst;
import com.alibaba.nacos.api.naming.NamingService;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.HashMap;
import java.util.List;
import java.util.Properties;

/**
 * Finds a service with Nacos' own client, as an application does that calls it. It prints the instances that it is told, a
 * line of {@code HOST:PORT HEALTHY WEIGHT} each; then it calls a healthy one, if there is any, and prints
 * {@code called HOST:PORT BODY}.
 */
public class Consumer {
    static final String USAGE = "consumer-nacos -nacos HOST:PORT -service NAME -path PATH";

    public static void main(String[] args) throws Exception {
        var options = new HashMap<String, String>();
        for (int i = 0; i + 1 < args.length; i += 2) {
            options.put(args[i], args[i + 1]);
        }
        if (!options.keySet().containsAll(List.of("-nacos", "-service", "-path"))) {
            System.err.println(USAGE);
            System.exit(1);
        }
        var properties = new Properties();
        properties.put(PropertyKeyConst.SERVER_ADDR, options.get("-nacos"));
        NamingService naming = NacosFactory.createNamingService(properties);
        var service = options.get("-service");
        // With a subscription, as all that call again and again have.
        for (var instance : naming.getAllInstances(service)) {
            System.out.println(instance.toInetAddr() + " " + instance.isHealthy() + " " + instance.getWeight());
        }
        if (!naming.selectInstances(service, true).isEmpty()) {
            var address = naming.selectOneHealthyInstance(service).toInetAddr();
            var request = HttpRequest.newBuilder(URI.create("http://" + address + options.get("-path"))).build();
            var answer = HttpClient.newHttpClient().send(request, BodyHandlers.ofString());
            System.out.println("called " + address + " " + answer.body().trim());
        }
        System.exit(0);
    }
}
