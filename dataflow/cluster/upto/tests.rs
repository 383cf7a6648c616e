//! The leader and its members as values, whose pulses arrive late, repeated or not at all: what is
//! visible anywhere is never more than what all have committed, and in the end it is that.
#![allow(clippy::unwrap_used)]

use super::*;
use trueup_operators::hash;

fn cluster(processes: usize) -> Vec<Upto> {
    (0..processes).map(|me| Upto::new(me, processes, Box::new(|| ()))).collect()
}

#[test]
fn visible_is_what_all_have_committed_whatever_becomes_of_pulses() {
    for seed in 0..200 {
        let processes = 1 + seed as usize % 4;
        let all = cluster(processes);
        // Pulses of each process to each, in order, of which some are left out.
        let mut truth = vec![0_u64; processes];
        let mut seen = vec![0; processes];
        for step in 0..200 {
            let draw =
                |what: u64, below: usize| hash::mix(seed * 1000 + step, what) as usize % below;
            let (from, to) = (draw(1, processes), draw(2, processes));
            if draw(3, 3) == 0 {
                truth[from] += draw(4, 3) as u64;
                all[from].commit(truth[from]);
            } else if from != to && (from == 0 || to == 0) {
                all[to].heard(from, &all[from].said()).unwrap();
            }
            let least = truth.iter().copied().min().unwrap();
            for (process, upto) in all.iter().enumerate() {
                let visible = upto.visible();
                assert!(visible <= least, "seed {seed}: {visible} is visible, committed {truth:?}");
                assert!(visible >= seen[process], "seed {seed}: visible goes back");
                seen[process] = visible;
            }
        }
        (1..processes).for_each(|p| all[0].heard(p, &all[p].said()).unwrap());
        (1..processes).for_each(|p| all[p].heard(0, &all[0].said()).unwrap());
        let least = truth.iter().copied().min().unwrap();
        assert!(all.iter().all(|upto| upto.visible() == least), "seed {seed}");
    }
}

#[test]
fn only_the_leader_says_what_is_visible() {
    let all = cluster(3);
    let lie = [9_u64, 9].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>();
    all[2].heard(1, &lie).unwrap();
    assert_eq!((all[2].visible(), all[2].committed()), (0, vec![0, 9, 0]));
    all[2].heard(0, &lie).unwrap();
    assert_eq!(all[2].visible(), 9);
}

#[test]
fn a_pulse_that_no_member_sends_is_an_error() {
    let all = cluster(2);
    let pulse = |epoch: u64| [epoch, 0].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>();
    all[0].heard(1, &pulse(5)).unwrap();
    let said = all[0].heard(1, &pulse(4)).unwrap_err().to_string();
    assert_eq!(said, "epoch 4 is committed after 5 was");
    assert!(all[0].heard(1, &pulse(6)[..15]).is_err());
    assert!(all[0].heard(1, &[pulse(6), vec![0]].concat()).is_err());
    assert_eq!(all[0].committed(), [0, 5]);
}
