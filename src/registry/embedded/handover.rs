//! The registry goes from one process to another, with what it holds.

use super::{
    Embedded, Refusal, saved,
    state::{Contents, Kept, State},
};
use crate::config::EmbeddedRegistry;
use futures_util::future::BoxFuture;
use std::{collections::HashSet, io, sync::Arc};
use tokio::{sync::oneshot, time::Instant};

impl Embedded {
    /// The registry with the state of another process, which keeps it until [`Self::take_over`]: until then nothing expires here
    /// and nothing is written.
    pub fn borrow(
        name: &str,
        config: &EmbeddedRegistry,
        state: &str,
    ) -> io::Result<(Arc<Self>, BoxFuture<'static, ()>)> {
        let mut own = State::borrowed();
        replace(&mut own, decode(state)?);
        Ok(Self::running(name, config, own))
    }

    /// Has the registry from now on, with the last state that the other process had, if that is known. Whoever is in it gets a
    /// full TTL, as after a restart.
    pub async fn take_over(&self, state: Option<&str>) -> io::Result<()> {
        let last = state.map(decode).transpose();
        let (last, result) = match last {
            Ok(last) => (last, Ok(())),
            Err(error) => (None, Err(error)),
        };
        let own = self.with(move |own| {
            if let Some(last) = last {
                replace(own, last);
            }
            own.borrowed = false;
        });
        own.await.map_err(io::Error::other)?;
        result
    }

    /// What it holds now.
    pub async fn state(&self) -> io::Result<String> {
        encode(&self.with(|state| state.contents()).await.map_err(io::Error::other)?)
    }

    /// Ends here, for another process: gives what it holds, after which nothing changes any more and nothing is written.
    pub async fn give_up(&self) -> io::Result<String> {
        let (heir, last) = oneshot::channel();
        self.with(move |state| state.heir = Some(heir)).await.map_err(io::Error::other)?;
        encode(&last.await.map_err(|_| io::Error::other(Refusal::Stopped))?)
    }
}

fn replace(state: &mut State, Contents { instances, values }: Contents) {
    let wanted: HashSet<_> = instances.iter().map(|kept| (kept.name.clone(), kept.instance.id.clone())).collect();
    for Kept { name, instance, .. } in state.instances() {
        if !wanted.contains(&(name.clone(), instance.id.clone())) {
            state.deregister(&name, &instance.id);
        }
    }
    state.values.replace(values);
    for kept in instances {
        // There is room for as many as the other process had.
        let _ = state.register(kept, Instant::now());
    }
}

/// As in the file.
fn encode(contents: &Contents) -> io::Result<String> {
    String::from_utf8(saved::encode(contents)?).map_err(io::Error::other)
}

fn decode(state: &str) -> io::Result<Contents> {
    saved::decode(state.as_bytes()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Condition, Registration},
        *,
    };
    use crate::registry::layout::plain::Entry;
    use std::{path::Path, time::Duration};
    use tokio::time::sleep;

    async fn register(registry: &Embedded, address: &str, ttl: u64) -> Result<(), Refusal> {
        let ttl = Some(Duration::from_secs(ttl));
        registry.register(Registration { name: "users".into(), entry: Entry::new(address), ttl }).await.map(|_| ())
    }

    async fn ids(registry: &Embedded) -> Vec<String> {
        registry.discover("users").await.unwrap().into_iter().map(|instance| instance.id).collect()
    }

    fn config(path: &Path) -> EmbeddedRegistry {
        EmbeddedRegistry { persist: Some(path.to_owned()), ..Default::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn one_process_has_it_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let (old, task) = Embedded::open("local", &config(&path)).unwrap();
        tokio::spawn(task);
        let (short, gone, late) = ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80");
        register(&old, short, 60).await.unwrap();
        register(&old, gone, 3600).await.unwrap();
        let (new, task) = Embedded::borrow("local", &config(&path), &old.state().await.unwrap()).unwrap();
        tokio::spawn(task);

        old.deregister("users", gone).await.unwrap();
        old.put_value("a", Condition::Any, "1").await.unwrap();
        register(&old, late, 3600).await.unwrap();
        let last = old.give_up().await.unwrap();
        assert_eq!(register(&old, gone, 60).await, Err(Refusal::Stopped));
        // Nobody writes, and nothing expires.
        let _ = std::fs::remove_file(&path);
        sleep(Duration::from_secs(600)).await;
        assert_eq!(ids(&new).await, [short, gone]);
        assert_eq!(new.value("a").await.unwrap(), None);
        assert!(!path.exists());

        new.take_over(Some(&last)).await.unwrap();
        assert_eq!(ids(&new).await, [short, late]);
        assert_eq!(new.value("a").await.unwrap().map(|value| value.text).as_deref(), Some("1"));
        new.flush().await.unwrap();
        assert!(path.exists());
        sleep(Duration::from_secs(61)).await;
        assert_eq!(ids(&new).await, [late]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_last_word_what_was_borrowed_stays() {
        let (old, task) = Embedded::open("local", &EmbeddedRegistry::default()).unwrap();
        tokio::spawn(task);
        register(&old, "10.0.0.1:80", 60).await.unwrap();
        let state = old.state().await.unwrap();
        for (last, is_good) in [(None, true), (Some("damaged"), false)] {
            let (new, task) = Embedded::borrow("local", &EmbeddedRegistry::default(), &state).unwrap();
            tokio::spawn(task);
            assert_eq!(new.take_over(last).await.is_ok(), is_good);
            assert_eq!(ids(&new).await, ["10.0.0.1:80"]);
            sleep(Duration::from_secs(61)).await;
            assert_eq!(ids(&new).await, [""; 0], "it is this one's now");
        }
        assert!(Embedded::borrow("local", &EmbeddedRegistry::default(), "damaged").is_err());
    }
}
