//! Where each layout keeps its services, and what is said when they change.

use super::events::{Message, Topic};
use crate::{config::RedisLayout, registry::layout::dubbo};

/// The keys of one layout in one database.
#[derive(Debug, Clone)]
pub struct Keys {
    layout: RedisLayout,
    /// Empty, or ends in `/`.
    base: String,
    db: u32,
}

/// What a message says has changed.
#[derive(Debug, PartialEq, Eq)]
pub enum Changed<'m> {
    /// The instance of that name.
    One(&'m str),
    /// Anything of the service.
    All,
    /// Nothing of this service.
    Nothing,
}

impl Keys {
    /// With the layout's own prefix where `prefix` is `None`.
    pub fn new(layout: RedisLayout, prefix: Option<&str>, db: u32) -> Self {
        let prefix = prefix.unwrap_or_else(|| layout.default_prefix());
        // `/` is a prefix too, that of keys like `/users/a`; no prefix is keys like `users/a`.
        let base = if prefix.is_empty() { String::new() } else { format!("{}/", prefix.trim_end_matches('/')) };
        Self { layout, base, db }
    }

    pub fn layout(&self) -> RedisLayout {
        self.layout
    }

    /// What follows the service in the key of a hash; nothing where each instance has a key of its own.
    fn suffix(&self) -> &'static str {
        match self.layout {
            RedisLayout::Plain => "",
            RedisLayout::Dubbo => "/providers",
            RedisLayout::Kitex => "/server",
        }
    }

    /// The hash of all instances of `service`, and the channel on which its changes are published.
    pub fn of_service(&self, service: &str) -> String {
        let service = match self.layout {
            RedisLayout::Dubbo => dubbo::interface_of(service),
            RedisLayout::Plain | RedisLayout::Kitex => service,
        };
        format!("{}{service}{}", self.base, self.suffix())
    }

    /// The key of one instance, in the plain layout.
    pub fn of_instance(&self, service: &str, name: &str) -> String {
        format!("{}{service}/{name}", self.base)
    }

    /// What matches all keys of all services.
    pub fn pattern(&self) -> Vec<u8> {
        [escaped(&self.base).as_bytes(), b"*", self.suffix().as_bytes()].concat()
    }

    /// The service and the instance's name (empty for a hash) in a key, or `None` if the layout would not write such a key.
    pub fn split<'k>(&self, key: &'k [u8]) -> Option<(&'k str, &'k str)> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.base)?;
        let (service, name) = match self.layout {
            RedisLayout::Plain => rest.rsplit_once('/').filter(|(_, name)| !name.is_empty())?,
            RedisLayout::Dubbo | RedisLayout::Kitex => (rest.strip_suffix(self.suffix())?, ""),
        };
        (!service.is_empty()).then_some((service, name))
    }

    /// Where it is said that something of `service` has changed: by the writer, and by Redis itself.
    pub fn topics(&self, service: &str) -> Vec<Topic> {
        let channel = self.of_service(service);
        let notifications = self.notifications();
        let own = match self.layout {
            RedisLayout::Plain => Topic::Pattern(format!("{}/*", escaped(&format!("{notifications}{channel}"))).into()),
            RedisLayout::Dubbo | RedisLayout::Kitex => Topic::Channel(format!("{notifications}{channel}").into()),
        };
        vec![Topic::Channel(channel.into()), own]
    }

    /// What a message that came for one of [`Self::topics`] means.
    pub fn changed<'m>(&self, service: &str, message: &'m Message) -> Changed<'m> {
        if self.layout != RedisLayout::Plain {
            return Changed::All;
        }
        let (channel, payload) = (std::str::from_utf8(&message.channel), std::str::from_utf8(&message.payload));
        let (Ok(channel), Ok(payload)) = (channel, payload) else { return Changed::All };
        match channel.strip_prefix(&self.notifications()) {
            Some(key) => match self.split(key.as_bytes()) {
                Some((of, name)) if of == service => Changed::One(name),
                _ => Changed::Nothing,
            },
            None if payload.is_empty() || payload.contains('/') => Changed::All,
            None => Changed::One(payload),
        }
    }

    /// What the channels of Redis's own notifications about a key begin with.
    fn notifications(&self) -> String {
        format!("__keyspace@{}__:", self.db)
    }
}

/// As a pattern that matches only this text.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(channel: &str, payload: &str) -> Message {
        Message { channel: channel.to_owned().into(), payload: payload.to_owned().into() }
    }

    #[test]
    fn each_layout_has_its_keys() {
        for (layout, prefix, key, pattern, split) in [
            (RedisLayout::Plain, None, "/pillion/users/a", "/pillion/*", ("users", "a")),
            (RedisLayout::Plain, Some("/"), "/users/a", "/*", ("users", "a")),
            (RedisLayout::Plain, Some(""), "team/users/a", "*", ("team/users", "a")),
            (RedisLayout::Plain, Some("a*b[1]?\\"), "a*b[1]?\\/users/a", r"a\*b\[1\]\?\\/*", ("users", "a")),
            (RedisLayout::Dubbo, None, "/dubbo/com.foo.Bar/providers", "/dubbo/*/providers", ("com.foo.Bar", "")),
            (RedisLayout::Kitex, None, "/kitex/users/server", "/kitex/*/server", ("users", "")),
            (RedisLayout::Kitex, Some("/hertz/"), "/hertz/users/server", "/hertz/*/server", ("users", "")),
        ] {
            let keys = Keys::new(layout, prefix, 0);
            assert_eq!(String::from_utf8(keys.pattern()).unwrap(), pattern);
            assert_eq!(keys.split(key.as_bytes()), Some(split), "{key}");
            let again = if split.1.is_empty() { keys.of_service(split.0) } else { keys.of_instance(split.0, split.1) };
            assert_eq!(again, key);
        }
        for (layout, key) in [
            (RedisLayout::Plain, "/pillion/users"),
            (RedisLayout::Plain, "/pillion/users/"),
            (RedisLayout::Plain, "/pillion//a"),
            (RedisLayout::Plain, "/other/users/a"),
            (RedisLayout::Dubbo, "/dubbo/com.foo.Bar/consumers"),
            (RedisLayout::Dubbo, "/dubbo//providers"),
            (RedisLayout::Kitex, "/kitex/users"),
        ] {
            assert_eq!(Keys::new(layout, None, 0).split(key.as_bytes()), None, "{key}");
        }
        assert_eq!(Keys::new(RedisLayout::Plain, None, 0).split(b"/pillion/\xff/a"), None);
    }

    #[test]
    fn changes_are_heard_from_the_writer_and_from_redis() {
        let channel = |name: &str| Topic::Channel(name.to_owned().into());
        let plain = Keys::new(RedisLayout::Plain, None, 3);
        let pattern = Topic::Pattern("__keyspace@3__:/pillion/us\\*rs/*".into());
        assert_eq!(plain.topics("us*rs"), [channel("/pillion/us*rs"), pattern]);
        for (name, payload, changed) in [
            ("__keyspace@3__:/pillion/users/a", "set", Changed::One("a")),
            ("__keyspace@3__:/pillion/users/a", "expired", Changed::One("a")),
            ("__keyspace@3__:/pillion/users/more/a", "set", Changed::Nothing),
            ("/pillion/users", "a", Changed::One("a")),
            ("/pillion/users", "", Changed::All),
            ("/pillion/users", "x/y", Changed::All),
        ] {
            assert_eq!(plain.changed("users", &message(name, payload)), changed, "{name} {payload}");
        }
        let dubbo = Keys::new(RedisLayout::Dubbo, None, 0);
        let name = "/dubbo/com.foo.Bar/providers";
        assert_eq!(dubbo.topics("com.foo.Bar"), [channel(name), channel(&format!("__keyspace@0__:{name}"))]);
        assert_eq!(dubbo.topics("com.foo.Bar:1.0"), dubbo.topics("com.foo.Bar"));
        assert_eq!(dubbo.changed("com.foo.Bar", &message(name, "register")), Changed::All);
    }

    proptest! {
        #[test]
        fn no_key_makes_it_panic(key in prop::collection::vec(any::<u8>(), 0..60), text in "[/a*_:@]{0,20}") {
            for layout in [RedisLayout::Plain, RedisLayout::Dubbo, RedisLayout::Kitex] {
                let keys = Keys::new(layout, None, 0);
                let _ = keys.split(&key);
                let message = Message { channel: format!("__keyspace@0__:{text}").into(), payload: key.clone().into() };
                let _ = keys.changed("users", &message);
            }
        }
    }
}
