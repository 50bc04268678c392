package pillion;

import com.alibaba.nacos.Nacos;

/** Starts the server. Arguments are system properties as KEY=VALUE; after "once" it ends as soon as it is up. */
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
        Nacos.main(new String[0]);
        if (once) {
            System.exit(0);
        }
    }
}
