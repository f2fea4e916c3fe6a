//! Who uses which expert: a batch's routing, grouped by expert.

use crate::backend::Routing;

/// One use of an expert: the row that uses it and the rank that it has in the row's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertUse {
    /// Row of the batch.
    pub row: u32,
    /// Rank in the row's choice, from 0.
    pub rank: u32,
}

/// The uses of a batch, grouped by expert.
#[derive(Clone, Debug)]
pub struct ExpertUses {
    /// Experts of a row.
    top_k: usize,
    /// Experts that are used at all, in order of index: their order in the file.
    distinct: Vec<u32>,
    /// The uses of all experts, those of one expert together.
    uses: Vec<ExpertUse>,
    /// For each expert of the layer, where its uses end; they begin where the one before ends.
    ends: Vec<usize>,
}

impl ExpertUses {
    /// No uses yet, of so many experts.
    pub fn new(n_experts: usize) -> Self {
        Self { top_k: 0, distinct: Vec::new(), uses: Vec::new(), ends: vec![0; n_experts] }
    }

    /// Sorts the uses by expert (counting sort; within an expert by row). Replaces what was there.
    pub fn group(&mut self, routing: &Routing) {
        let n_experts = self.ends.len();
        self.top_k = routing.top_k;
        self.ends.fill(0);
        let mut n_uses = 0;
        for &expert in routing.experts.iter().filter(|&&expert| expert != Routing::LEFT_OUT) {
            self.ends[expert as usize] += 1;
            n_uses += 1;
        }
        self.distinct.clear();
        self.distinct.extend((0..n_experts as u32).filter(|&e| self.ends[e as usize] > 0));
        // `ends` turns from counts into beginnings, and then into ends as uses are placed.
        let mut begin = 0;
        for end in &mut self.ends {
            begin += std::mem::replace(end, begin);
        }
        self.uses.clear();
        self.uses.resize(n_uses, ExpertUse { row: 0, rank: 0 });
        for (index, &expert) in routing.experts.iter().enumerate() {
            if expert == Routing::LEFT_OUT {
                continue;
            }
            let (row, rank) = (index / routing.top_k, index % routing.top_k);
            let end = &mut self.ends[expert as usize];
            self.uses[*end] = ExpertUse { row: row as u32, rank: rank as u32 };
            *end += 1;
        }
    }

    /// Experts of the layer.
    pub fn n_experts(&self) -> usize {
        self.ends.len()
    }

    /// Experts of a row.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// The experts that are used, each once, in order of index.
    pub fn distinct(&self) -> &[u32] {
        &self.distinct
    }

    /// Asks for each expert that is used, with its uses, whether somebody else computes it, and takes it out
    /// of the distinct ones if so.
    pub fn take(&mut self, mut takes: impl FnMut(u32, &[ExpertUse]) -> bool) {
        let mut distinct = std::mem::take(&mut self.distinct);
        distinct.retain(|&expert| !takes(expert, self.of(expert)));
        self.distinct = distinct;
    }

    /// The uses of an expert, in order of row, whether it was taken or not.
    pub fn of(&self, expert: u32) -> &[ExpertUse] {
        let expert = expert as usize;
        let begin = if expert == 0 { 0 } else { self.ends[expert - 1] };
        &self.uses[begin..self.ends[expert]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_left_out_have_no_uses() {
        let left_out = Routing::LEFT_OUT;
        let experts = vec![3, left_out, 0, 3];
        let routing = Routing { top_k: 2, experts, weights: vec![1.0, 0.0, 0.5, 0.5] };
        let mut uses = ExpertUses::new(4);
        uses.group(&routing);
        assert_eq!(uses.distinct(), [0, 3]);
        assert_eq!([uses.of(0).len(), uses.of(3).len()], [1, 2]);
        assert_eq!(uses.of(3)[1], ExpertUse { row: 1, rank: 1 });
        assert_eq!([routing.n_used(0), routing.n_used(1)], [1, 2]);
    }

    #[test]
    fn uses_are_grouped_by_expert_in_row_order() {
        let routing = Routing { top_k: 2, experts: vec![3, 0, 0, 2, 3, 2], weights: vec![0.5; 6] };
        let mut uses = ExpertUses::new(4);
        for _ in 0..2 {
            uses.group(&routing);
            assert_eq!(uses.distinct(), [0, 2, 3]);
            let of = |expert| -> Vec<(u32, u32)> {
                uses.of(expert).iter().map(|use_| (use_.row, use_.rank)).collect()
            };
            assert_eq!(of(0), [(0, 1), (1, 0)]);
            assert_eq!(of(1), []);
            assert_eq!(of(2), [(1, 1), (2, 1)]);
            assert_eq!(of(3), [(0, 0), (2, 0)]);
            uses.take(|expert, uses| expert == 3 && uses.len() == 2);
            assert_eq!(uses.distinct(), [0, 2]);
            assert_eq!(uses.of(3).len(), 2);
        }
    }
}
