import java.util.Map;
import org.apache.dubbo.common.URL;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.registry.Registry;
import org.apache.dubbo.registry.RegistryFactory;
import org.apache.dubbo.rpc.model.ApplicationModel;

/** Dubbo's interface level: the service is an interface, the instance a provider's URL. */
final class DubboClient implements Registrant.Client {
  private final Registry registry;
  private final String protocol;
  private URL registered;

  DubboClient(Map<String, String> options) {
    protocol = options.getOrDefault("protocol", "dubbo");
    registry =
        application()
            .getExtensionLoader(RegistryFactory.class)
            .getExtension("zookeeper")
            .getRegistry(registryUrl(options));
  }

  static ApplicationModel application() {
    ApplicationModel application = ApplicationModel.defaultModel();
    application.getApplicationConfigManager().setApplication(new ApplicationConfig("demo"));
    return application;
  }

  static URL registryUrl(Map<String, String> options) {
    return URL.valueOf("zookeeper://" + options.get("zookeeper") + "/org.apache.dubbo.registry.RegistryService")
        .setScopeModel(ApplicationModel.defaultModel());
  }

  @Override
  public void register(Registrant.Instance instance) {
    URL next =
        new org.apache.dubbo.common.url.component.ServiceConfigURL(
                protocol, instance.host(), instance.port(), instance.service(), instance.meta())
            .addParameter("interface", instance.service())
            .addParameter("application", "demo")
            .addParameter("side", "provider")
            .addParameter("category", "providers");
    registry.register(next);
    // Another URL is another node.
    if (registered != null) {
      registry.unregister(registered);
    }
    registered = next;
  }

  @Override
  public void deregister() {
    registry.unregister(registered);
  }
}
