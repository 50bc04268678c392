import java.net.HttpURLConnection;
import java.net.URI;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.api.ACLProvider;
import org.apache.curator.retry.RetryOneTime;
import org.apache.curator.x.discovery.ServiceDiscovery;
import org.apache.curator.x.discovery.ServiceDiscoveryBuilder;
import org.apache.curator.x.discovery.ServiceInstance;
import org.apache.curator.x.discovery.ServiceInstanceBuilder;
import org.apache.curator.x.discovery.ServiceType;
import org.apache.curator.x.discovery.UriSpec;
import org.apache.curator.x.discovery.details.JsonInstanceSerializer;
import org.apache.zookeeper.ZooDefs;
import org.apache.zookeeper.data.ACL;
import org.springframework.cloud.zookeeper.discovery.ZookeeperInstance;

/** Curator's service discovery, with a payload of our own or, as Spring Cloud ZooKeeper uses it, with Spring's. */
final class CuratorClient implements Registrant.Client {
  /** A payload as somebody may have it who uses Curator directly. */
  public static final class Details {
    public String weight;
    public String version;
  }

  private final boolean spring;
  private final Integer sslPort;
  private final ServiceDiscovery<Object> discovery;
  private ServiceInstance<Object> registered;

  CuratorClient(Map<String, String> options) throws Exception {
    spring = options.get("framework").equals("spring");
    sslPort = options.containsKey("ssl-port") ? Integer.valueOf(options.get("ssl-port")) : null;
    CuratorFrameworkFactory.Builder builder =
        CuratorFrameworkFactory.builder().connectString(options.get("zookeeper")).retryPolicy(new RetryOneTime(1000));
    if (options.containsKey("digest")) {
      builder.authorization("digest", options.get("digest").getBytes()).aclProvider(onlyCreator());
    }
    CuratorFramework client = builder.build();
    client.start();
    discovery =
        ServiceDiscoveryBuilder.builder(Object.class)
            .client(client)
            .basePath("/services")
            .serializer(serializer(spring ? ZookeeperInstance.class : Details.class))
            .build();
    discovery.start();
  }

  @SuppressWarnings("unchecked")
  private static JsonInstanceSerializer<Object> serializer(Class<?> payload) {
    return new JsonInstanceSerializer<>((Class<Object>) payload);
  }

  private static ACLProvider onlyCreator() {
    return new ACLProvider() {
      @Override
      public List<ACL> getDefaultAcl() {
        return ZooDefs.Ids.CREATOR_ALL_ACL;
      }

      @Override
      public List<ACL> getAclForPath(String path) {
        return ZooDefs.Ids.CREATOR_ALL_ACL;
      }
    };
  }

  /** Calls the first instance of a service, and says which one that was and what it answered. */
  String call(String service, String path) throws Exception {
    ServiceInstance<Object> instance = discovery.queryForInstances(service).iterator().next();
    if (spring && !((ZookeeperInstance) instance.getPayload()).getId().equals(instance.getId())) {
      throw new IllegalStateException("not Spring's payload: " + instance.getPayload());
    }
    URI uri = URI.create(instance.buildUriSpec(Map.of("scheme", "http")) + path);
    HttpURLConnection connection = (HttpURLConnection) uri.toURL().openConnection();
    return uri.getAuthority() + " " + connection.getResponseCode();
  }

  @Override
  public void register(Registrant.Instance instance) throws Exception {
    ServiceInstanceBuilder<Object> builder =
        ServiceInstance.builder()
            .name(instance.service())
            .address(instance.host())
            .port(instance.port())
            .serviceType(ServiceType.DYNAMIC)
            .uriSpec(new UriSpec("{scheme}://{address}:{port}"));
    if (sslPort != null) {
      builder.sslPort(sslPort);
    }
    String id = registered != null ? registered.getId() : instance.id();
    if (id != null) {
      builder.id(id);
    }
    builder.payload(spring ? springPayload(id, instance) : details(instance));
    ServiceInstance<Object> next = builder.build();
    if (registered == null) {
      discovery.registerService(next);
    } else {
      discovery.updateService(next);
    }
    registered = next;
  }

  private static Object springPayload(String id, Registrant.Instance instance) {
    Map<String, String> metadata = new HashMap<>(instance.meta());
    metadata.putIfAbsent("instance_status", "UP");
    return new ZookeeperInstance(id == null ? "application-1" : id, instance.service(), metadata);
  }

  private static Object details(Registrant.Instance instance) {
    Details details = new Details();
    details.weight = instance.meta().get("weight");
    details.version = instance.meta().get("version");
    return details;
  }

  @Override
  public void deregister() throws Exception {
    discovery.unregisterService(registered);
  }
}
