"""Messages get the simulated time at which they were sent, whatever order they arrive in."""

from mbrl_ros.nodes.clock_map import ClockMap


def stamped(events):
    """Feed ('clock', sent, value) and ('message', sent); return message times as they come out."""
    clock_map, times = ClockMap(), []
    for kind, sent_ns, *value in events:
        if kind == 'clock':
            clock_map.tick(sent_ns, *value)
        else:
            clock_map.put(sent_ns, 0.0, times.append)
    before_flush = list(times)
    clock_map.flush()
    return before_flush, times


def test_a_message_takes_the_clock_that_was_current_when_it_was_sent():
    # Sent at 15, between the clocks sent at 10 (value 1000) and 20 (value 2000): 1000.
    in_order = [('clock', 10, 1000), ('message', 15), ('clock', 20, 2000)]
    late = [('clock', 10, 1000), ('clock', 20, 2000), ('message', 15)]
    early = [('message', 15), ('clock', 10, 1000), ('clock', 20, 2000)]
    for events in (in_order, late, early):
        assert stamped(events) == ([1000], [1000])


def test_a_message_waits_until_no_earlier_clock_can_come():
    # Sent at 25 while the clock sent at 20 is still on its way: 1000 would be one step early.
    assert stamped([('clock', 10, 1000), ('message', 25), ('clock', 20, 2000)]) == ([], [2000])


def test_messages_before_any_clock_are_at_zero():
    assert stamped([('message', 5)]) == ([], [0])
    assert stamped([('message', 5), ('clock', 10, 1000)]) == ([1000], [1000])


def test_flush_keeps_what_arrived_lately():
    clock_map, times = ClockMap(), []
    clock_map.tick(10, 1000)
    clock_map.put(20, 1.0, times.append)
    clock_map.put(30, 2.0, times.append)
    clock_map.flush(arrived_before_s=1.5)
    assert times == [1000]
    assert clock_map.now_ns == 1000
