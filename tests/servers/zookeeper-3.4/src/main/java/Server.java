import org.apache.zookeeper.Version;
import org.apache.zookeeper.server.ZooKeeperServerMain;

/** ZooKeeper's server, which without a config says which one it is. */
public final class Server {
  public static void main(String[] args) {
    if (args.length == 0) {
      System.out.println("ZooKeeper " + Version.getVersion());
    } else {
      ZooKeeperServerMain.main(args);
    }
  }
}
