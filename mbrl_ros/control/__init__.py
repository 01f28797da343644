"""One control step: latency compensation, plan, deadline, fallback, safety gate. No ROS."""
