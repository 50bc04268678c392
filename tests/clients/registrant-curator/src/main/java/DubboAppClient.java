import java.util.LinkedHashMap;
import java.util.Map;
import org.apache.dubbo.registry.client.DefaultServiceInstance;
import org.apache.dubbo.registry.client.metadata.ServiceInstanceMetadataUtils;
import org.apache.dubbo.registry.zookeeper.ZookeeperServiceDiscovery;
import org.apache.dubbo.rpc.model.ApplicationModel;

/** Dubbo's application level: the service is an application, the instance a process with an endpoint per protocol. */
final class DubboAppClient implements Registrant.Client {
  private final ApplicationModel application = DubboClient.application();
  private final ZookeeperServiceDiscovery discovery;
  private DefaultServiceInstance registered;

  DubboAppClient(Map<String, String> options) {
    discovery = new ZookeeperServiceDiscovery(application, DubboClient.registryUrl(options));
  }

  @Override
  public void register(Registrant.Instance instance) {
    DefaultServiceInstance next =
        new DefaultServiceInstance(instance.service(), instance.host(), instance.port(), application);
    next.setMetadata(new LinkedHashMap<>(instance.meta()));
    Map<String, Integer> endpoints = new LinkedHashMap<>();
    endpoints.put("dubbo", instance.port());
    endpoints.put("tri", instance.port() + 1);
    ServiceInstanceMetadataUtils.setEndpoints(next, endpoints);
    // As Dubbo itself does when what it serves changed.
    if (registered != null) {
      discovery.doUnregister(registered);
    }
    discovery.doRegister(next);
    registered = next;
  }

  @Override
  public void deregister() {
    discovery.doUnregister(registered);
  }
}
