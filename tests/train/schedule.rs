use warpo::{config::Schedule, optim::LearningRate};

/// Step and factor as `transformers.optimization.get_{constant,linear,cosine}_schedule_with_warmup` define them for
/// 10 steps of warm-up in 100: `step / 10`; then 1, `(100 - step) / 90` and `(1 + cos(pi (step - 10) / 90)) / 2`.
const WARMUP: u64 = 10;
const TOTAL: u64 = 100;
const ALL: [Schedule; 4] = [Schedule::Constant, Schedule::Linear, Schedule::Cosine, Schedule::WarmupStableDecay];

fn check(schedule: Schedule, warmup_steps: u64, total_steps: u64, expected: &[(u64, f64)]) {
    let rate = LearningRate { peak: 2e-4, floor: 0.0, schedule, warmup_steps, decay_steps: 20, total_steps };
    for &(step, factor) in expected {
        let (got, want) = (rate.at(step), 2e-4 * factor);
        // Both sides take fewer than ten roundings of numbers up to 2e-4 (cosine: of numbers up to pi in the factor).
        assert!((got - want).abs() <= 2e-4 * 1e-14, "{schedule:?} step {step}: {got} instead of {want}");
    }
}

#[test]
fn warm_up_rises_from_zero_in_every_schedule() {
    for schedule in ALL {
        check(schedule, WARMUP, TOTAL, &[(0, 0.0), (1, 0.1), (5, 0.5), (9, 0.9), (10, 1.0)]);
    }
}

#[test]
fn constant() {
    check(Schedule::Constant, WARMUP, TOTAL, &[(11, 1.0), (99, 1.0), (500, 1.0)]);
}

#[test]
fn linear_ends_one_step_above_zero() {
    check(Schedule::Linear, WARMUP, TOTAL, &[(11, 89.0 / 90.0), (55, 0.5), (99, 1.0 / 90.0), (100, 0.0), (101, 0.0)]);
}

#[test]
fn cosine() {
    let sqrt_3 = 3f64.sqrt();
    let expected = [(25, (1.0 + sqrt_3 / 2.0) / 2.0), (40, 0.75), (55, 0.5), (70, 0.25), (100, 0.0)];
    check(Schedule::Cosine, WARMUP, TOTAL, &expected);
}

/// `get_wsd_schedule(num_warmup_steps=10, num_decay_steps=20, num_training_steps=100)`: 1, and from step 80 on
/// `(1 + cos(pi (step - 80) / 20)) / 2`.
#[test]
fn warmup_stable_decay() {
    let half = 0.5f64.sqrt();
    let falls = [(80, 1.0), (85, (1.0 + half) / 2.0), (90, 0.5), (95, (1.0 - half) / 2.0), (100, 0.0), (140, 0.0)];
    check(Schedule::WarmupStableDecay, WARMUP, TOTAL, &[(11, 1.0), (50, 1.0), (79, 1.0)]);
    check(Schedule::WarmupStableDecay, WARMUP, TOTAL, &falls);
    // Nothing is left of the stable part: the fall begins where the rise ends.
    check(Schedule::WarmupStableDecay, 90, TOTAL, &[(89, 89.0 / 90.0), (90, 1.0), (95, 0.5), (100, 0.0)]);
}

/// `get_cosine_with_min_lr_schedule_with_warmup(min_lr=5e-5)` and the same for the others: `f (1 - 1/4) + 1/4` of the peak.
#[test]
fn a_floor_is_what_the_rate_falls_to() {
    for (schedule, step, factor) in [
        (Schedule::Linear, 55, 0.5),
        (Schedule::Cosine, 40, 0.75),
        (Schedule::WarmupStableDecay, 90, 0.5),
        (Schedule::Linear, 100, 0.0),
        (Schedule::WarmupStableDecay, 100, 0.0),
    ] {
        let (peak, floor) = (2e-4, 5e-5);
        let rate = LearningRate { peak, floor, schedule, warmup_steps: WARMUP, decay_steps: 20, total_steps: TOTAL };
        let want = 2e-4 * (factor * 0.75 + 0.25);
        assert!(
            (rate.at(step) - want).abs() <= 2e-4 * 1e-14,
            "{schedule:?} step {step}: {} is not {want}",
            rate.at(step)
        );
        assert_eq!(rate.at(0), 0.0);
    }
}

#[test]
fn without_warm_up_the_first_step_has_the_peak() {
    for schedule in ALL {
        check(schedule, 0, 4, &[(0, 1.0)]);
    }
    check(Schedule::Linear, 0, 4, &[(1, 0.75), (2, 0.5), (3, 0.25)]);
}

#[test]
fn a_warm_up_as_long_as_the_run_does_not_divide_by_zero() {
    for schedule in ALL {
        check(schedule, 4, 4, &[(0, 0.0), (3, 0.75)]);
        let rate = LearningRate { peak: 1.0, floor: 0.0, schedule, warmup_steps: 4, decay_steps: 1, total_steps: 4 };
        assert!(rate.at(4).is_finite());
    }
}
