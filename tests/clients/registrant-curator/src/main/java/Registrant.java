import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import org.apache.zookeeper.ZooKeeperMain;

/**
 * Registers one instance of a service with a Java framework's own client, as tests/clients/registrant does with those of
 * Go: prints "registered", then obeys lines on standard input:
 *
 * <pre>
 * meta k=v k=v   register again with this metadata; prints "updated"
 * deregister     deregister, print "deregistered", exit
 * </pre>
 *
 * As a consumer it prints "ready", and then obeys:
 *
 * <pre>
 * call PATH      GET PATH at one of the instances; prints "called ADDRESS STATUS" or "failed: WHY"
 * </pre>
 */
public final class Registrant {
  /** What to register. */
  record Instance(String service, String id, String host, int port, Map<String, String> meta) {}

  /** One framework's client. {@code register} is called again when the metadata changed. */
  interface Client {
    void register(Instance instance) throws Exception;

    void deregister() throws Exception;
  }

  private static final String USAGE =
      """
      registrant-curator -framework curator|spring|dubbo|dubbo-app -zookeeper HOST:PORT -service NAME -addr HOST:PORT
        -id ID           curator, spring: by default a random UUID, as Curator makes it
        -meta k=v        may be repeated; dubbo: parameters of the URL
        -protocol NAME   dubbo: dubbo by default
        -ssl-port PORT   curator, spring
        -digest U:P      curator, spring: log in, and let nobody else read
      registrant-curator consumer -framework curator|spring -zookeeper HOST:PORT -service NAME
      registrant-curator cli -server HOST:PORT
        ZooKeeper's own command line""";

  public static void main(String[] args) throws Exception {
    if (args.length > 0 && args[0].equals("cli")) {
      // ZooKeeper's own client, which obeys lines on standard input.
      ZooKeeperMain.main(Arrays.copyOfRange(args, 1, args.length));
      return;
    }
    Map<String, String> options = new LinkedHashMap<>();
    Map<String, String> meta = new LinkedHashMap<>();
    boolean consumer = args.length > 0 && args[0].equals("consumer");
    for (int i = consumer ? 1 : 0; i + 1 < args.length; i += 2) {
      if (args[i].equals("-meta")) {
        put(meta, args[i + 1]);
      } else {
        options.put(args[i].replaceFirst("^-", ""), args[i + 1]);
      }
    }
    if (consumer) {
      consume(new CuratorClient(options), options.get("service"));
      return;
    }
    if (!options.containsKey("framework") || !options.containsKey("service") || !options.containsKey("addr")) {
      System.err.println(USAGE);
      System.exit(64);
    }
    String addr = options.get("addr");
    int colon = addr.lastIndexOf(':');
    int port = Integer.parseInt(addr.substring(colon + 1));
    Instance instance =
        new Instance(options.get("service"), options.get("id"), addr.substring(0, colon), port, meta);
    Client client =
        switch (options.get("framework")) {
          case "curator", "spring" -> new CuratorClient(options);
          case "dubbo" -> new DubboClient(options);
          case "dubbo-app" -> new DubboAppClient(options);
          default -> throw new IllegalArgumentException(USAGE);
        };
    client.register(instance);
    System.out.println("registered");
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    for (String line; (line = lines.readLine()) != null; ) {
      if (line.startsWith("meta ")) {
        Map<String, String> changed = new LinkedHashMap<>();
        for (String pair : line.substring(5).trim().split(" +")) {
          put(changed, pair);
        }
        client.register(new Instance(instance.service, instance.id, instance.host, instance.port, changed));
        System.out.println("updated");
      } else if (line.equals("deregister")) {
        client.deregister();
        System.out.println("deregistered");
        System.exit(0);
      } else {
        System.err.println("registrant-curator: unknown line: " + line);
      }
    }
    // The end of standard input alone does nothing.
    Thread.currentThread().join();
  }

  private static void consume(CuratorClient client, String service) throws Exception {
    System.out.println("ready");
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    for (String line; (line = lines.readLine()) != null; ) {
      try {
        System.out.println("called " + client.call(service, line.replaceFirst("^call ", "")));
      } catch (Exception e) {
        System.out.println("failed: " + e);
      }
    }
    System.exit(0);
  }

  private static void put(Map<String, String> meta, String pair) {
    int equals = pair.indexOf('=');
    meta.put(pair.substring(0, equals), pair.substring(equals + 1));
  }
}
