package pillion;

import org.springframework.boot.SpringApplication;
import org.springframework.boot.SpringBootVersion;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.cloud.netflix.eureka.server.EnableEurekaServer;
import org.springframework.context.annotation.Bean;
import org.springframework.core.env.Environment;
import org.springframework.security.config.Customizer;
import org.springframework.security.config.annotation.web.builders.HttpSecurity;
import org.springframework.security.web.SecurityFilterChain;

/**
 * A Eureka server. All is set by Spring's own properties; a login is wanted where `spring.security.user.name` is set.
 * With `--once` it ends as soon as it has started.
 */
@SpringBootApplication(proxyBeanMethods = false)
@EnableEurekaServer
public class EurekaServer {
    public static void main(String[] args) {
        if (args.length == 1 && args[0].equals("--version")) {
            System.out.println("Eureka server on Spring Boot " + SpringBootVersion.getVersion());
            return;
        }
        var context = SpringApplication.run(EurekaServer.class, args);
        if (context.getEnvironment().containsProperty("once")) {
            context.close();
        }
    }

    @Bean
    SecurityFilterChain security(HttpSecurity http, Environment environment) throws Exception {
        http.csrf(csrf -> csrf.disable());
        if (environment.containsProperty("spring.security.user.name")) {
            http.httpBasic(Customizer.withDefaults()).authorizeHttpRequests(requests -> requests.anyRequest().authenticated());
        } else {
            http.authorizeHttpRequests(requests -> requests.anyRequest().permitAll());
        }
        return http.build();
    }
}
