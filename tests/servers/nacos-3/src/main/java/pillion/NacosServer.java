package pillion;

import com.alibaba.nacos.NacosServerBasicApplication;
import com.alibaba.nacos.NacosServerWebApplication;
import com.alibaba.nacos.core.listener.startup.NacosStartUp;
import com.alibaba.nacos.core.listener.startup.NacosStartUpManager;
import com.alibaba.nacos.sys.env.DeploymentType;
import com.alibaba.nacos.sys.env.EnvUtil;
import org.springframework.boot.WebApplicationType;
import org.springframework.boot.builder.SpringApplicationBuilder;

/**
 * Starts the server without its console. Arguments are system properties as KEY=VALUE; after "once" it ends as soon as it
 * is up.
 */
public class NacosServer {
    public static void main(String[] args) {
        boolean once = false;
        for (String arg : args) {
            var pair = arg.split("=", 2);
            if (pair.length == 2) {
                System.setProperty(pair[0], pair[1]);
            }
            once |= arg.equals("once");
        }
        EnvUtil.setDeploymentType(DeploymentType.SERVER);
        NacosStartUpManager.start(NacosStartUp.CORE_START_UP_PHASE);
        var core = new SpringApplicationBuilder(NacosServerBasicApplication.class).web(WebApplicationType.NONE).run();
        NacosStartUpManager.start(NacosStartUp.WEB_START_UP_PHASE);
        new SpringApplicationBuilder(NacosServerWebApplication.class).parent(core).run();
        if (once) {
            System.exit(0);
        }
    }
}
