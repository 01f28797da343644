"""The ROS 2 nodes: the only place that knows rclpy. Importing this package does not import it."""
