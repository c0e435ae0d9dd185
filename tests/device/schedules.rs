//! The schedules are really different, repeatable, and each runs everybody.

use std::collections::HashSet;

use warpo::device::{Buffer, Device, HostOptions, Launch, ThreadOrder, host::Completion};

use super::kernels::semantics as kernel;

const SCHEDULES: [ThreadOrder; 5] =
    [ThreadOrder::InOrder, ThreadOrder::Reversed, ThreadOrder::Eager, ThreadOrder::Random(1), ThreadOrder::Random(2)];

fn order(schedule: ThreadOrder, len: usize, launch: impl FnOnce(&Device, &Buffer<i32>, &Buffer<i32>)) -> Vec<i32> {
    let device = Device::host(HostOptions::strict(schedule, Completion::Early)).unwrap();
    let (order, count) = (device.alloc::<i32>(len).unwrap(), device.zeros::<i32>(1).unwrap());
    launch(&device, &order, &count);
    device.download(&order).unwrap()
}

fn threads(schedule: ThreadOrder) -> Vec<i32> {
    order(schedule, 3 * 96, |device, order, count| {
        // SAFETY: every thread writes three numbers.
        unsafe { kernel::order_of_threads(device, Launch::linear(1, 96), kernel::OrderOf { order, count }).unwrap() };
    })
}

fn blocks(schedule: ThreadOrder) -> Vec<i32> {
    order(schedule, 24, |device, order, count| {
        let launch = Launch { grid: [6, 4, 1], ..Launch::linear(1, 1) };
        // SAFETY: every block writes one number.
        unsafe { kernel::order_of_blocks(device, launch, kernel::OrderOf { order, count }).unwrap() };
    })
}

fn is_permutation(order: &[i32]) -> bool {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    sorted.iter().enumerate().all(|(i, &x)| i as i32 == x)
}

#[test]
fn threads_run_in_different_orders() {
    let orders: Vec<Vec<i32>> = SCHEDULES.iter().map(|&schedule| threads(schedule)).collect();
    for (order, schedule) in orders.iter().zip(SCHEDULES) {
        assert!(is_permutation(&order[..96]), "{schedule:?}: a thread passed the barrier before all had come");
        assert_eq!(*order, threads(schedule), "{schedule:?} does not repeat");
    }
    let distinct = |part: fn(&[i32]) -> &[i32]| orders.iter().map(|o| part(o)).collect::<HashSet<_>>().len();
    // Up to the barrier, eager and in order are the same.
    assert_eq!(distinct(|o| &o[..96]), 4, "orders before the barrier");
    assert_eq!(distinct(|o| &o[96..]), 5, "orders after the barrier");
}

#[test]
fn blocks_run_in_different_orders() {
    let orders: Vec<Vec<i32>> = SCHEDULES.iter().map(|&schedule| blocks(schedule)).collect();
    assert!(orders.iter().all(|order| is_permutation(order)));
    assert_eq!(orders[0], (0..24).collect::<Vec<_>>());
    assert_eq!(orders[1], (0..24).rev().collect::<Vec<_>>());
    assert_eq!(orders.iter().collect::<HashSet<_>>().len(), 4, "eager runs blocks in order");
}
