"""What is kept of images: the last ones in memory, others on the disk, and what operators say of them."""
