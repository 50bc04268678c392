package pillion;

import com.alibaba.nacos.api.NacosFactory;
import com.alibaba.nacos.api.PropertyKeyConst;
import com.alibaba.nacos.api.naming.NamingService;
import com.alibaba.nacos.api.naming.pojo.Instance;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;

/**
 * Registers one instance with Nacos' own client. Like the registrant in Go it prints "registered" and then obeys lines on
 * standard input:
 *
 * <pre>
 * meta k=v k=v    registers again with this metadata
 * weight NUMBER   registers again with this weight
 * enabled BOOLEAN registers again with this
 * deregister      deregisters, prints "deregistered", exits
 * </pre>
 *
 * All but the last print "updated".
 */
public class Registrant {
    static final String USAGE = "registrant-nacos -nacos HOST:PORT -service NAME -addr HOST:PORT [-group GROUP]"
        + " [-namespace ID] [-cluster NAME] [-user USER:PASSWORD] [-weight NUMBER] [-meta k=v]...";

    public static void main(String[] args) throws Exception {
        var options = new HashMap<String, String>();
        var meta = new HashMap<String, String>();
        for (int i = 0; i + 1 < args.length; i += 2) {
            if (args[i].equals("-meta")) {
                put(meta, args[i + 1]);
            } else {
                options.put(args[i], args[i + 1]);
            }
        }
        if (!options.keySet().containsAll(List.of("-nacos", "-service", "-addr"))) {
            System.err.println(USAGE);
            System.exit(1);
        }
        var properties = new Properties();
        properties.put(PropertyKeyConst.SERVER_ADDR, options.get("-nacos"));
        properties.put(PropertyKeyConst.NAMESPACE, options.getOrDefault("-namespace", "public"));
        if (options.containsKey("-user")) {
            var login = options.get("-user").split(":", 2);
            properties.put(PropertyKeyConst.USERNAME, login[0]);
            properties.put(PropertyKeyConst.PASSWORD, login[1]);
        }
        NamingService naming = NacosFactory.createNamingService(properties);
        var service = options.get("-service");
        var group = options.getOrDefault("-group", "DEFAULT_GROUP");
        var address = options.get("-addr").split(":");
        var instance = new Instance();
        instance.setIp(address[0]);
        instance.setPort(Integer.parseInt(address[1]));
        instance.setClusterName(options.getOrDefault("-cluster", "DEFAULT"));
        instance.setWeight(Double.parseDouble(options.getOrDefault("-weight", "1")));
        instance.setMetadata(meta);
        naming.registerInstance(service, group, instance);
        System.out.println("registered");

        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = lines.readLine()) != null; ) {
            var words = line.trim().split(" ");
            switch (words[0]) {
                case "meta" -> {
                    var changed = new HashMap<String, String>();
                    for (int i = 1; i < words.length; i++) {
                        put(changed, words[i]);
                    }
                    instance.setMetadata(changed);
                }
                case "weight" -> instance.setWeight(Double.parseDouble(words[1]));
                case "enabled" -> instance.setEnabled(Boolean.parseBoolean(words[1]));
                case "deregister" -> {
                    naming.deregisterInstance(service, group, instance);
                    System.out.println("deregistered");
                    System.exit(0);
                }
                default -> {
                    System.err.println("registrant-nacos: unknown line " + line);
                    continue;
                }
            }
            naming.registerInstance(service, group, instance);
            System.out.println("updated");
        }
        // The end of standard input alone does nothing.
        Thread.sleep(Long.MAX_VALUE);
    }

    static void put(Map<String, String> meta, String pair) {
        var split = pair.split("=", 2);
        meta.put(split[0], split[1]);
    }
}
