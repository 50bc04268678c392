//! The registry `dns`.

use super::errors_of;

#[test]
fn what_is_wrong_is_told() {
    let dns = |rest: &str| errors_of(&format!("registries:\n  d:\n    kind: dns\n    {rest}\n"));
    let name = "expected a name with `{service}` in it, like `{service}.service.consul`";
    assert_eq!(dns("record: srv"), ["3:5: registries.d: `name` is missing"]);
    for (bad, why) in [
        ("service.consul", ""),
        ("{service} x", ", and of letters, digits, `-` and `_`"),
        ("{service}..x", ", and of from 1 to 63 characters between two dots, and 253 in all"),
    ] {
        let expected = format!("4:11: registries.d.name: found `{bad}`; {name}{why}");
        assert_eq!(dns(&format!("name: '{bad}'")), [expected]);
    }
    let with = |rest: &str| dns(&format!("name: '{{service}}.test'\n    {rest}"));
    assert_eq!(
        with("servers: [10.0.0.53, dns.test, '[::1]:0']"),
        [
            "5:26: registries.d.servers[1]: found `dns.test`; expected `IP` or `IP:PORT`",
            "5:36: registries.d.servers[2]: found `[::1]:0`; expected `IP` or `IP:PORT`"
        ]
    );
    assert_eq!(with("port: 80"), ["5:11: registries.d.port: `srv` records have their own; expected none"]);
    assert_eq!(with("record: a"), ["5:13: registries.d.record: `port` is missing; only `srv` records say it"]);
    assert_eq!(with("min_ttl: 10ms"), ["5:14: registries.d.min_ttl: found `10ms`; expected at least `100ms`"]);
    assert_eq!(
        with("max_ttl: 500ms"),
        ["5:14: registries.d.max_ttl: found `500ms`; expected at least `min_ttl`, which is `1s`"]
    );
    assert_eq!(with("timeout: 0s"), ["5:14: registries.d.timeout: found `0s`; expected at least `1ms`"]);
}
