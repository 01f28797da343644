"""Bags, resampling and datasets: from a recording to transitions at a fixed dt, without ROS."""
