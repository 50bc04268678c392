//! Drawing by weight.

/// Draws by weight in constant time. (M. D. Vose, "A linear algorithm for generating random numbers with a given
/// distribution", 1991.)
#[derive(Debug)]
pub struct WeightedDraw {
    pub usable: Box<[usize]>,
    /// Per usable endpoint: the share of its slot that is its own, and the one that has the rest.
    slots: Box<[(f64, usize)]>,
}

impl WeightedDraw {
    pub fn new(weights: &[u32]) -> Self {
        let usable: Box<[usize]> = (0..weights.len()).filter(|index| weights[*index] > 0).collect();
        let sum: f64 = usable.iter().map(|index| f64::from(weights[*index])).sum();
        let mut scaled: Vec<f64> =
            usable.iter().map(|index| f64::from(weights[*index]) * usable.len() as f64 / sum).collect();
        let mut slots: Box<[(f64, usize)]> = usable.iter().map(|index| (1.0, *index)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..usable.len()).partition(|slot| scaled[*slot] < 1.0);
        while let (Some(under), Some(over)) = (small.pop(), large.last().copied()) {
            slots[under] = (scaled[under], usable[over]);
            scaled[over] -= 1.0 - scaled[under];
            if scaled[over] < 1.0 {
                large.pop();
                small.push(over);
            }
        }
        Self { usable, slots }
    }

    pub fn draw(&self) -> usize {
        let slot = fastrand::usize(..self.slots.len());
        let (own, other) = self.slots[slot];
        if own >= 1.0 || fastrand::f64() < own { self.usable[slot] } else { other }
    }

    /// Another than `first`, if there is one; `draw` draws.
    pub fn draw_other(&self, first: usize, draw: impl Fn() -> usize) -> Option<usize> {
        if self.usable.len() < 2 {
            return None;
        }
        // Where one endpoint has nearly all the weight, drawing until it differs would take long.
        (0..4).map(|_| draw()).find(|index| *index != first).or_else(|| {
            let at = fastrand::usize(..self.usable.len());
            let index = self.usable[at];
            Some(if index == first { self.usable[(at + 1) % self.usable.len()] } else { index })
        })
    }
}
