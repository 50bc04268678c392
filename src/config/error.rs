//! What is wrong with a config: every fault with its place, its path and what was expected.

use std::fmt;

/// Where a piece of the config was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The source as a whole, e.g. a file that cannot be read.
    Whole,
    /// A position in the text; both count from 1, the column in characters.
    Text { line: u32, column: u32 },
    /// A flag (`--listen`) or an environment variable (`PILLION_LISTEN`).
    Setting(&'static str),
}

/// One step of a path: into a map by key, or into a list by index (from 0).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Key(String),
    Index(usize),
}

/// The way from the root of a document to one of its nodes, shown as `services.web.timeouts.connect` or
/// `listeners[0].name`. Keys with other characters than letters, digits, `_` and `-` are shown in quotes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path(pub Vec<Step>);

impl Path {
    pub fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.into()))
    }

    pub fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    if depth > 0 {
                        f.write_str(".")?;
                    }
                    let simple =
                        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
                    if simple { f.write_str(key)? } else { write!(f, "{:?}", shorten(key))? }
                }
            }
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub place: Place,
    pub path: Path,
    /// What was found and what was expected, in plain words.
    pub message: String,
}

/// Gathers faults. The same fault at the same place is kept once: an alias and `defaults` make one text count many times.
#[derive(Debug, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// More than anyone reads; reading stops there, so that a wholly wrong big file cannot take long.
    pub const MOST: usize = 100;

    pub fn add(&mut self, place: Place, path: Path, message: impl Into<String>) {
        let fault = Fault { place, path, message: message.into() };
        let known = self.0.iter().any(|f| {
            f.message == fault.message && f.place == fault.place && (place != Place::Whole || f.path == fault.path)
        });
        if !known && !self.is_full() {
            self.0.push(fault);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.0.len() >= Self::MOST
    }

    /// `value` if nothing is wrong, all that is wrong otherwise. `name` is the file's, as the user wrote it.
    pub fn or<T>(self, name: Option<&str>, value: Option<T>) -> Result<T, Errors> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Errors::new(name, self.0)),
        }
    }
}

/// Everything that is wrong with one config. Displayed with one line per fault, sorted by position, and their count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errors {
    name: Option<String>,
    faults: Vec<Fault>,
}

impl Errors {
    fn new(name: Option<&str>, mut faults: Vec<Fault>) -> Self {
        faults.sort_by_key(|fault| fault.place);
        Self { name: name.map(Into::into), faults }
    }

    /// Sorted by position.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Fault { place, path, message } in &self.faults {
            let mut show_path = !path.0.is_empty();
            match (place, &self.name) {
                (Place::Text { line, column }, Some(name)) => write!(f, "{name}:{line}:{column}: ")?,
                (Place::Text { line, column }, None) => write!(f, "{line}:{column}: ")?,
                (Place::Whole, Some(name)) => write!(f, "{name}: ")?,
                (Place::Whole, None) => {}
                (Place::Setting(setting), _) => {
                    write!(f, "{setting}: ")?;
                    // A flag's name says which key it sets; only a registry's URL holds several.
                    show_path &= path.0.len() > 1 && path.0[0] == Step::Key("registries".into());
                }
            }
            if show_path {
                write!(f, "{path}: ")?;
            }
            // A message quotes what was found: a line break in it must not look like another error.
            for c in message.chars() {
                if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
            }
            f.write_str("\n")?;
        }
        let count = self.faults.len();
        let more = if count >= Faults::MOST { " or more" } else { "" };
        write!(f, "{count}{more} error{}", if count == 1 { "" } else { "s" })?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " in {name}"))
    }
}

impl std::error::Error for Errors {}

/// A text short enough to quote in a message.
pub fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// "`a`, `b` or `c`".
pub(super) fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<_> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => "nothing".into(),
    }
}

/// "; did you mean `x`?" when one of `words` is close to `text`, nothing otherwise.
pub(super) fn did_you_mean<'a>(text: &str, words: impl IntoIterator<Item = &'a str>) -> String {
    let text = text.to_ascii_lowercase().replace('_', "-");
    // A third of the letters may be wrong: `tmeouts` is `timeouts`, but `log` is not `foo`.
    let most = (text.chars().count() / 3).max(1);
    let near = words
        .into_iter()
        .map(|word| (strsim::osa_distance(&text, &word.to_ascii_lowercase().replace('_', "-")), word))
        .filter(|(distance, word)| *distance <= most && *distance < word.chars().count())
        .min_by_key(|(distance, _)| *distance);
    near.map_or_else(String::new, |(_, word)| format!("; did you mean `{word}`?"))
}
