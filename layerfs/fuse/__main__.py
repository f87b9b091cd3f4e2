import sys

from layerfs.fuse.program import main

sys.exit(main())
