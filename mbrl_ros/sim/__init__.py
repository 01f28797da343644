"""The simulated robot without ROS: MuJoCo physics behind a robot spec."""
